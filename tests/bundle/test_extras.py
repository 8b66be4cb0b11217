import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.bundle import extras

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> "set[str]":
    """Names of modules; a test adds those that find_spec must not find."""
    gone: set[str] = set()
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in gone else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return gone


def test_every_extra_is_one_of_pyproject() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(extras.names()) == set(declared) - {"gpu", "dev"}


def test_require_accepts_an_installed_extra() -> None:
    assert extras.missing("export") == []
    extras.require("export")


def test_require_names_missing_modules_and_the_command_that_installs_them(without: "set[str]") -> None:
    without |= {"onnx_ir"}
    assert extras.missing("export") == ["onnx_ir"]
    with pytest.raises(ImportError, match=r"^onnx_ir not installed; run: pip install 'sae-runtime\[export\]'$"):
        extras.require("export")
    without |= {"torch", "transformers"}
    with pytest.raises(ImportError, match=r"^torch, transformers not installed; run: .*sae-runtime\[train\]'$"):
        extras.require("train")


def test_require_names_both_packages_of_onnxruntime(without: "set[str]") -> None:
    without |= {"onnxruntime"}
    with pytest.raises(ImportError, match=r"sae-runtime\[cpu\]'.*sae-runtime\[gpu\]'") as caught:
        extras.require("cpu")
    assert "\n" not in str(caught.value)
