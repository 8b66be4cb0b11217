"""A bundle is a SAELens folder: SAELens itself reads it and computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_witness
from conftest import D_IN, K, make_weights, make_x

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
    z = torch_witness.latents(weights, x)
    cut = torch_witness.token(z, K)[1] if kind == "token" else [torch_witness.double(weights["threshold"])]
    torch_witness.assert_same_features(features.to_dense(), (f.double(), cut))
    torch_witness.assert_close(ours.decode(features), x_hat.double())
    assert features.l0().mean() > 1
