from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import D_IN
from foreign import BATCHES, activations, assert_near
from native import FORMS, native

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints import write_sparsify
from sae_runtime.checkpoints.convert import convert

TOPK: dict[str, Any] = {"selection": "topk", "k": 6}
GROUPMAX: dict[str, Any] = {"selection": "groupmax", "k": 6}


@pytest.fixture(scope="module")
def opened() -> Callable[[Path], Any]:
    from sparsify import SparseCoder

    return lambda path: SparseCoder.load_from_disk(path)


@pytest.mark.parametrize("selection", [TOPK, GROUPMAX], ids=["topk", "groupmax"])
@pytest.mark.parametrize("form", ["plain", "no pre-bias", "skip", "transcoder", "skip transcoder"])
def test_sparsify_computes_the_same(
    tmp_path: Path, opened: Callable[[Path], Any], selection: dict[str, Any], form: str
) -> None:
    path = native(tmp_path / "sae", **selection, **FORMS[form])
    write_sparsify.write(path, tmp_path / "layers.1", force=False)
    theirs, ours = opened(tmp_path / "layers.1"), load(path)
    for n in BATCHES:
        x = activations(n, D_IN)
        with torch.no_grad():
            values, indices, _ = theirs.encode(x)
            y = theirs(x).sae_out
        features = ours.encode(x.numpy())
        assert features.l0().mean() > 2
        assert_near(torch.zeros(n, ours.d_sae).scatter(1, indices, values).numpy(), features.to_dense())
        assert_near(y.numpy(), ours.decode(features, x.numpy()))


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = native(tmp_path / "sae", **GROUPMAX, **FORMS["skip transcoder"])
    write_sparsify.write(path, tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "again")
    before, after = bundle.read(path), bundle.read(tmp_path / "again")
    assert before.manifest.architecture == after.manifest.architecture
    for name in before.specs:
        assert (before.tensor(name) == after.tensor(name)).all()


def test_bundles_that_sparsify_cannot_compute_are_refused(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match="is served by a threshold, and sparsify knows top k and groupmax only; convert"
    ):
        write_sparsify.write(bundle_of("mutual"), out)
    with pytest.raises(
        ValueError, match=r"normalises every token \(layer\), which sparsify does not; serve the bundle"
    ):
        write_sparsify.write(native(tmp_path / "layer", **TOPK, norm="layer"), out)
    with pytest.raises(ValueError, match="makes activations 7 wide of those 24 wide, and sparsify knows one width; "):
        write_sparsify.write(native(tmp_path / "wide", **TOPK, d_out=7, pre_bias=False), out)
    with pytest.raises(bundle.BundleError, match="holds no sae_runtime.json, so it is not a bundle"):
        write_sparsify.write(tmp_path, out)
    assert not out.exists()
    write_sparsify.write(bundle_of("token"), out)
    with pytest.raises(FileExistsError, match="out already exists; pass --force"):
        write_sparsify.write(bundle_of("token"), out)
    write_sparsify.write(bundle_of("token"), out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["cfg.json", "sae.safetensors"]
