import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import D_IN, K
from foreign import BATCHES, activations, assert_near
from native import FORMS, native
from peers import stand_in_for_nnsight

from sae_runtime import load
from sae_runtime.bundle import extras
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.checkpoints import write_dictionary_learning
from sae_runtime.checkpoints.convert import convert

MUTUAL = {"selection": "threshold", "allocation": Allocation(kind="mutual", k=6.0)}
# name: class that is written, bundle
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("AutoEncoderTopK", {"selection": "topk", "k": 6}),
    "topk, no pre-bias": ("AutoEncoderTopK", {"selection": "topk", "k": 6, "pre_bias": False}),
    "common threshold": ("BatchTopKSAE", {**MUTUAL, "threshold": 1.5}),
    "common threshold, no pre-bias": ("BatchTopKSAE", {**MUTUAL, "threshold": 1.5, "pre_bias": False}),
    "common threshold, no whole k": (
        "JumpReluAutoEncoder",
        {"selection": "threshold", "allocation": Allocation(kind="mutual", k=6.5), "threshold": 1.5},
    ),
    "thresholds": ("JumpReluAutoEncoder", {"selection": "threshold"}),
    "thresholds, no pre-bias": ("JumpReluAutoEncoder", {"selection": "threshold", "pre_bias": False}),
    "relu": ("AutoEncoder", {"selection": "threshold", "threshold": 0.0}),
    "relu, no pre-bias": ("AutoEncoder", {"selection": "threshold", "threshold": 0.0, "pre_bias": False}),
    "relu, decoder of any length": ("JumpReluAutoEncoder", {"selection": "threshold", "threshold": 0.0, "length": 1.7}),
}


@pytest.fixture(scope="module")
def opened() -> Callable[[Path], tuple[Any, dict[str, Any]]]:
    stand_in_for_nnsight()
    sys.modules.setdefault("zstandard", types.ModuleType("zstandard"))  # for its text only
    from dictionary_learning.utils import load_dictionary

    return lambda path: load_dictionary(str(path), "cpu")


@pytest.mark.parametrize("name", CASES)
def test_dictionary_learning_computes_the_same(
    tmp_path: Path, opened: Callable[[Path], tuple[Any, dict[str, Any]]], name: str
) -> None:
    kind, settings = CASES[name]
    path = native(tmp_path / "sae", **settings)
    write_dictionary_learning.write(path, tmp_path / "out", force=False)
    (theirs, config), ours = opened(tmp_path / "out"), load(path)
    assert type(theirs).__name__ == config["trainer"]["dict_class"] == kind
    assert (config["trainer"]["lm_name"], config["trainer"]["submodule_name"]) == ("tiny", "layer.1")
    for n in BATCHES:
        x = activations(n, D_IN)
        with torch.no_grad():
            f = theirs.encode(x)
            y = theirs.decode(f)
        features = ours.encode(x.numpy())
        assert features.l0().mean() > 2
        assert_near(f.numpy(), features.to_dense())
        assert_near(y.numpy(), ours.decode(features))


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_bundles_of_training_open(
    tmp_path: Path,
    bundle_of: Callable[..., Path],
    opened: Callable[[Path], tuple[Any, dict[str, Any]]],
    kind: str,
) -> None:
    write_dictionary_learning.write(bundle_of(kind), tmp_path / "out")
    theirs, _ = opened(tmp_path / "out")
    expected = {"token": "AutoEncoderTopK", "mutual": "BatchTopKSAE", "feature": "JumpReluAutoEncoder"}
    assert type(theirs).__name__ == expected[kind]
    x = activations(300, D_IN)
    with torch.no_grad():
        f = theirs.encode(x)
    assert_near(f.numpy(), load(bundle_of(kind)).encode(x.numpy()).to_dense())
    if kind != "feature":
        assert int(theirs.k) == K
    assert_comes_back(bundle_of(kind), tmp_path)


def assert_comes_back(path: Path, folder: Path) -> None:
    convert(folder / "out", folder / "again")
    before, after = bundle.read(path), bundle.read(folder / "again")
    same = {"W_enc", "W_dec", "b_dec", "threshold"} & set(before.specs)
    assert all((before.tensor(name) == after.tensor(name)).all() for name in same)
    if before.manifest.allocation is not None and before.manifest.allocation.kind != "feature":
        assert after.manifest.allocation == before.manifest.allocation


def test_bundles_that_dictionary_learning_cannot_compute_are_refused(
    tmp_path: Path, bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", write_dictionary_learning.write
    with pytest.raises(
        ValueError, match="keeps the largest of each of 6 groups, which dictionary_learning does not; con"
    ):
        write(native(tmp_path / "groupmax", selection="groupmax", k=6), out)
    with pytest.raises(
        ValueError, match=r"normalises every token \(length\), which dictionary_learning does not; serve"
    ):
        write(native(tmp_path / "length", selection="topk", k=6, norm="length"), out)
    for form in ("skip", "transcoder"):
        with pytest.raises(
            ValueError, match="is a transcoder or has a skip, and dictionary_learning knows autoencoders"
        ):
            write(native(tmp_path / form, selection="topk", k=6, **FORMS[form]), out)
    with pytest.raises(bundle.BundleError, match="has no threshold yet.*run: sae-runtime calibrate"):
        write(native(tmp_path / "raw", selection="threshold", threshold=None), out)
    with monkeypatch.context() as patch:
        patch.setattr(extras, "missing", lambda extra: ["torch"] if extra == "train" else [])
        with pytest.raises(ImportError, match=r"torch not installed; run: pip install 'sae-runtime\[train\]'"):
            write(bundle_of("token"), out)
    assert not out.exists()
    write(bundle_of("token"), out)
    with pytest.raises(FileExistsError, match="out already exists; pass --force"):
        write(bundle_of("token"), out)
    write(bundle_of("token"), out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["ae.pt", "config.json"]
