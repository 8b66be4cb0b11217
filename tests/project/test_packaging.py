"""The wheel has every module of the checkout, and works with the runtime dependencies alone."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import in_bare, link
from made_store import context, feature, never_active, write_store

ROOT = Path(__file__).parents[2]
# Distributions that sae-runtime[cpu] needs on Linux; onnxruntime's tools need more.
RUNTIME = ("numpy", "onnxruntime", "click", "safetensors", "tqdm")
TEXT = ("tokenizers", "jinja2", "markupsafe")  # the extra `text`
# What load_model does not need, and what importing it does not need either; each takes milliseconds.
SLOW_TO_LOAD = {"click", "tqdm", "safetensors", "jinja2", "huggingface_hub", "numpy.random", "concurrent.futures"}
SLOW_TO_LOAD |= {"logging", "secrets", "importlib.resources"}
SLOW_TO_IMPORT = SLOW_TO_LOAD | {"onnxruntime", "tokenizers", "importlib.metadata"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("sae_runtime", "train", "exports"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"sae_runtime/py.typed", "sae_runtime/bundle/graph_forms.txt", "sae_runtime/engine/probe.onnx"}
    for assets in ("sae_runtime/serve/http/assets", "sae_runtime/browser/assets", "sae_runtime/ready"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / assets).rglob("*") if path.is_file()}
    for folder, inside in (
        ("sae_runtime", "sae_runtime"),
        ("train", "sae_runtime/train"),
        ("exports", "sae_runtime/exports"),
    ):
        expected |= {f"{inside}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
    assert packed == expected


def test_every_folder_of_code_is_a_listed_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/__init__.py") if ".venv" not in path.parts
    }
    folders = {folder for folder in folders if folder.split("/")[0] in ("sae_runtime", "train", "exports")}
    listed = set()
    for package in settings["packages"]:
        for name, folder in settings["package-dir"].items():
            package = package.replace(name, folder, 1)
        listed.add(package.replace(".", "/"))
    assert listed == folders


def test_wheel_serves_in_a_bare_environment(wheel: Path, tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    bare = tmp_path / "bare"
    zipfile.ZipFile(wheel).extractall(bare)
    link(bare, *RUNTIME)
    code = f"""
import sys
import numpy as np
import sae_runtime
sae = sae_runtime.load({str(bundle_of("feature"))!r})
x = np.random.default_rng(0).normal(0, 1.2, (5, sae.d_in)).astype(np.float32)
features = sae.encode(x)
assert len(features.values) > 0
assert sae.encode_batch(x).shape == (5,)
assert (sae.steer(x, []) == x).all() and (sae.steer(x, [sae_runtime.Edit.set(3, 2.0)]) != x).any()
assert not {{"torch", "onnx", "onnx_ir", "transformers"}} & set(sys.modules)
print(sae_runtime.__file__)
"""
    done = in_bare(bare, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(bare / "sae_runtime" / "__init__.py")


def test_the_wheel_has_a_ready_sae_that_opens_by_its_name(wheel: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    zipfile.ZipFile(wheel).extractall(bare)
    link(bare, *RUNTIME)
    code = """
import sys
import numpy as np
import sae_runtime
sae = sae_runtime.load("all-MiniLM-L6-v2/encoder.layer.3")
assert len(sae.labels) > 1000 and sae.stats is not None, "labels and stats"
x = sae.steer(np.zeros((2, 384)), sae_runtime.Edit.set("errors and exceptions", times=1))
print(sae.decode(sae.encode(x)).shape, {"torch", "onnx"} & set(sys.modules))
"""
    assert in_bare(bare, code).stdout == "(2, 384) set()\n"


def test_wheel_reads_text_in_a_bare_environment(wheel: Path, tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    from deployed_model import deploy  # imports torch

    model = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    bare = tmp_path / "bare"
    zipfile.ZipFile(wheel).extractall(bare)
    link(bare, *RUNTIME, *TEXT)
    code = f"""
import sys, warnings
import sae_runtime
from sae_runtime import Edit, load_model
slow = {SLOW_TO_IMPORT} & set(sys.modules)
assert not slow, slow
model = load_model({str(model)!r})
slow = {SLOW_TO_LOAD} & set(sys.modules)
assert not slow, slow
seen = model.features(["w1 w2 w3", "w4"])
assert len(seen[0]) == 5 and len(seen[0].features.values) > 0
edit = sae_runtime.Edit.set(3, 4.0)
assert (model.run("w1", edit)["last_hidden_state"] != model.run("w1")["last_hidden_state"]).any()
warnings.simplefilter("ignore")
assert model.embed(["w1", "w2 w3"], edit, gate="text").shape == (2, 24)
assert not {{"torch", "onnx", "onnx_ir", "transformers", "sentence_transformers"}} & set(sys.modules)
print(sae_runtime.__file__)
"""
    done = in_bare(bare, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(bare / "sae_runtime" / "__init__.py")


def test_wheel_writes_a_site_in_a_bare_environment(wheel: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [feature([context("open the file", "file", 4.0)]), never_active()])
    bare = tmp_path / "bare"
    zipfile.ZipFile(wheel).extractall(bare)
    link(bare, "numpy", "click", "tqdm", "pyarrow")
    site = tmp_path / "site"
    code = f"""
import sys
from sae_runtime.cli import main
main(["browse", {str(store)!r}, "-o", {str(site)!r}, "-q"], prog_name="sae-runtime", standalone_mode=False)
assert not {{"onnxruntime", "onnx", "torch", "pandas", "matplotlib"}} & set(sys.modules)
"""
    done = in_bare(bare, code)
    assert done.returncode == 0, done.stderr
    assets = ROOT / "sae_runtime" / "browser" / "assets"
    page = (assets / "site" / "index.html", assets / "site" / "main.js", assets / "shared" / "elements.js")
    written = (site / "index.html", site / "code" / "main.js", site / "code" / "shared" / "elements.js")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in page]


def test_the_wheel_names_the_extra_of_a_missing_package(wheel: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    zipfile.ZipFile(wheel).extractall(bare)
    link(bare, "numpy", "click", "safetensors", "tqdm")
    for code, extra in (
        ("from sae_runtime.train import fit", "train"),
        ("import sae_runtime.exports", "export"),
        ("import sae_runtime.engine.sessions as s; s.open_session('x.onnx')", "cpu"),
    ):
        done = in_bare(bare, code)
        assert done.returncode == 1 and f"pip install 'sae-runtime[{extra}]'" in done.stderr
