"""A bundle is a SAELens folder: SAELens itself reads it and computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_witness
from conftest import D_IN, K, make_weights, make_x
from foreign import assert_near
from native import native

from sae_runtime import load

BundleOf = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def lens() -> Any:
    from sae_lens import SAE

    return SAE


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_sae_lens_encodes_and_decodes_the_same(lens: Any, bundle_of: BundleOf, kind: str, d_sae: int) -> None:
    path, x = bundle_of(kind, d_sae), make_x(200)
    theirs, ours = lens.load_from_disk(path, device="cpu"), load(path)
    assert theirs.cfg.architecture() == ("topk" if kind == "token" else "jumprelu")
    assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (D_IN, d_sae)
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x))
        f = f.to_dense() if f.is_sparse else f
        x_hat = theirs.decode(f)
    features = ours.encode(x)
    weights = make_weights(d_sae, kind)
    z = torch_witness.pre_activations(weights, x)
    cut = torch_witness.token(z, K)[1] if kind == "token" else [torch_witness.double(weights["threshold"])]
    torch_witness.assert_same_features(features.to_dense(), (f.double(), cut))
    torch_witness.assert_close(ours.decode(features), x_hat.double())
    assert features.l0().mean() > 1


@pytest.mark.parametrize(
    ("form", "architecture"),
    [
        ({"selection": "topk", "k": 6, "norm": "layer"}, "topk"),
        ({"selection": "topk", "k": 6, "norm": "length", "pre_bias": False}, "topk"),
        ({"selection": "threshold", "pre_bias": False}, "jumprelu"),
        ({"selection": "threshold", "norm": "layer", "pre_bias": False}, "jumprelu"),
        ({"selection": "threshold", "norm": "length"}, "jumprelu"),
        ({"selection": "threshold", "pre_bias": False, "d_out": 7}, "jumprelu_transcoder"),
        ({"selection": "threshold", "pre_bias": False, "d_out": D_IN, "skip": True}, "jumprelu_skip_transcoder"),
    ],
)
def test_sae_lens_computes_the_same_for_every_form_that_it_knows(
    lens: Any, tmp_path: Path, form: dict[str, Any], architecture: str
) -> None:
    path, x = native(tmp_path / "sae", **form), make_x(200)
    theirs, ours = lens.load_from_disk(path, device="cpu"), load(path)
    assert theirs.cfg.architecture() == architecture
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x))
        f = f.to_dense() if f.is_sparse else f
        x_hat = theirs(torch.from_numpy(x))
    features = ours.encode(x)
    assert features.l0().mean() > 1
    assert_near(f.numpy(), features.to_dense())
    assert_near(x_hat.numpy(), ours.decode(features, x))


@pytest.mark.parametrize(
    "form",
    [
        {"selection": "groupmax", "k": 6},
        {"selection": "topk", "k": 6, "skip": True},
        {"selection": "topk", "k": 6, "pre_bias": False, "d_out": 7},
        {"selection": "threshold", "threshold": None},
    ],
)
def test_a_form_that_sae_lens_does_not_know_has_no_configuration(tmp_path: Path, form: dict[str, Any]) -> None:
    path = native(tmp_path / "sae", **form)
    assert not (path / "cfg.json").exists()
