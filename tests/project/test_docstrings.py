"""The examples in docstrings run and give the results that they show."""

import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, make_x
from small_tokenizers import save_example

import sae_runtime

Makers = dict[str, Callable[[], Any]]
_NAMES = ("sae", "x", "bundle_path", "activations_path", "host_path", "tokenizer_path", "model_path", "features_path")
NAMES = (*_NAMES, "store_path")


def module_names() -> list[str]:
    """Every module of the three packages, except modules that act when they are imported."""
    packages = [sae_runtime, *map(importlib.import_module, ("sae_runtime.train", "sae_runtime.exports"))]
    names = {package.__name__ for package in packages}
    for package in packages:
        names |= {module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    # Triton chooses its driver for the whole process when kernels are defined, and other tests need another driver.
    return sorted(name for name in names if not name.endswith(("__main__", "triton_kernels")))


@pytest.fixture
def makers(bundle_of: Callable[..., Path], copy_of: Callable[..., Path], tmp_path: Path) -> Makers:
    """Functions that make the values of the names that examples use."""

    def activations_path() -> str:
        np.save(tmp_path / "activations.npy", make_x(600, seed=2))
        return str(tmp_path / "activations.npy")

    def host_path() -> str:
        from tiny_host import host_graph  # imported here because it imports torch

        folder = shutil.copytree(host_graph("bert").parent, tmp_path / "host")
        return str(folder / host_graph("bert").name)

    def model_path() -> str:
        from deployed_model import deploy  # likewise

        return str(deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")}))

    def features_path() -> str:
        from sae_runtime.extraction.array_source import ArraySource
        from sae_runtime.extraction.extract import extract

        source = ArraySource(sae_runtime.load(bundle_of("mutual")), sae_runtime.open_activations(activations_path()))
        extract(source, tmp_path / "features")
        return str(tmp_path / "features")

    def store_path() -> str:
        from made_features import MadeSource, made_documents, write_features

        weights = sae_runtime.load(bundle_of("mutual")).manifest.files["sae_weights.safetensors"].sha256
        source = MadeSource(made_documents(10, 150), 150, facts={"weights_sha256": weights})
        features = write_features(tmp_path / "features of texts", source)
        sae_runtime.build_store(features, tmp_path / "store", sae=bundle_of("mutual"), context=8)
        return str(tmp_path / "store")

    return {
        "features_path": features_path,
        "store_path": store_path,
        "model_path": model_path,
        "sae": lambda: sae_runtime.load(bundle_of("mutual")),
        "x": lambda: make_x(6),
        "bundle_path": lambda: str(copy_of("mutual")),
        "activations_path": activations_path,
        "host_path": host_path,
        "tokenizer_path": lambda: str(save_example(tmp_path / "tokenizer")),
    }


@pytest.fixture
def in_temporary_folder(tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "work"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_examples(module: ModuleType, makers: Makers) -> str:
    """Run the examples of a module, and give the report of doctest on those that fail.

    An example may use the names of its module, `np`, and each of NAMES, whose value is made at its first use.
    """
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = io.StringIO()
    made: dict[str, Any] = {"np": np}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
        source = "".join(example.source for example in test.examples)
        for name in NAMES:
            if name not in made and re.search(rf"\b{name}\b", source):
                made[name] = makers[name]()
        test.globs |= made
        runner.run(test, out=said.write)
    return said.getvalue()


@pytest.mark.usefixtures("in_temporary_folder")
@pytest.mark.parametrize("name", module_names())
def test_examples_give_what_they_say(name: str, makers: Makers) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs what is not installed: {error}")
    assert run_examples(module, makers) == ""


def test_the_names_that_examples_use_have_the_values_that_they_show(makers: Makers) -> None:
    made = {name: makers[name]() for name in NAMES if name not in ("host_path", "model_path")}
    assert made["x"].shape == (6, D_IN) and made["x"].dtype == np.float32
    assert (made["sae"].d_in, made["sae"].d_sae) == (D_IN, 150)
    assert Path(made["bundle_path"]).is_dir()
    assert np.load(made["activations_path"]).shape == (600, D_IN)


def test_an_example_that_is_wrong_is_found(makers: Makers) -> None:
    module = ModuleType("wrong")
    module.__doc__ = ">>> x.shape\n(7, 24)\n>>> len([1])\n1\n"
    said = run_examples(module, makers)
    assert "(7, 24)" in said and "(6, 24)" in said and said.count("Failed example") == 1
