import importlib
import importlib.metadata
import importlib.util
import json
import platform
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch

from sae_runtime.bundle import extras
from sae_runtime.engine import doctor


def test_report_is_json_and_true() -> None:
    found = doctor.report()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["cpus"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["sae-runtime"] == importlib.metadata.version("sae-runtime")
    assert found["providers"] == onnxruntime.get_available_providers()
    assert found["cuda"] == torch.cuda.is_available()
    assert found["extras"] == {name: extras.missing(name) for name in extras.names()}
    assert found["warnings"] == []


def test_report_warns_of_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    found = doctor.report()
    assert found["versions"]["onnxruntime-gpu"] == "1.2.3"
    (warning,) = found["warnings"]
    assert warning.startswith("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run: pip ")


def test_report_lists_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "sae-runtime":
            return "0.2.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = doctor.report()
    assert found["versions"].pop("sae-runtime") == "0.2.0"
    assert set(found["versions"].values()) == {None}
    assert found["extras"]["cpu"] == ["onnxruntime"]
    assert (found["providers"], found["cuda"], found["warnings"]) == (None, None, [])


@pytest.mark.parametrize("starts", [True, False])
def test_report_warns_if_cuda_does_not_start(monkeypatch: pytest.MonkeyPatch, starts: bool) -> None:
    asked = []

    def open_session(path: Path, *, providers: list[str]) -> None:
        asked.append((path.name, providers))
        if not starts:
            raise ValueError("CUDAExecutionProvider could not start")

    monkeypatch.setattr(doctor, "open_session", open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    found = doctor.report()
    assert asked == [("probe.onnx", ["CUDAExecutionProvider"])]
    assert found["warnings"] == [] if starts else "does not start here; look at nvidia-smi" in found["warnings"][0]


def test_report_warns_of_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> ModuleType:
        raise OSError(f"lib{name}.so:\nno such file")

    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    found = doctor.report()
    assert (found["providers"], found["cuda"]) == (None, None)
    assert found["warnings"] == [
        f"{name} is installed but does not load (lib{name}.so: no such file); install it again"
        for name in ("onnxruntime", "torch")
    ]
