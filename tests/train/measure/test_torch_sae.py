"""The torch module against the float64 witness and the runtime, for every form of SAE that a manifest knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUOTA, K, make_x
from native import D_SAE, native
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.exports import witness
from sae_runtime.train.measure.tally import reconstruct
from sae_runtime.train.measure.torch_sae import TorchSAE, open_sae

FORMS: dict[str, dict[str, Any]] = {
    "topk": {"selection": "topk", "k": K},
    "topk, no pre-bias": {"selection": "topk", "k": K, "pre_bias": False},
    "topk, layer norm": {"selection": "topk", "k": K, "norm": "layer"},
    "topk, length": {"selection": "topk", "k": K, "norm": "length", "pre_bias": False},
    "topk, skip": {"selection": "topk", "k": K, "skip": True},
    "groups": {"selection": "groupmax", "k": K},
    "groups, layer norm": {"selection": "groupmax", "k": K, "norm": "layer", "pre_bias": False},
    "threshold": {"selection": "threshold"},
    "threshold, no pre-bias": {"selection": "threshold", "pre_bias": False},
    "threshold, layer norm": {"selection": "threshold", "norm": "layer"},
    "threshold, length, skip": {"selection": "threshold", "norm": "length", "skip": True},
    "transcoder": {"selection": "threshold", "pre_bias": False, "d_out": 11},
    "transcoder, skip": {"selection": "topk", "k": K, "pre_bias": False, "d_out": 11, "skip": True},
    "transcoder, groups": {"selection": "groupmax", "k": K, "pre_bias": False, "d_out": 24},
}
NORMS = [form for form, settings in FORMS.items() if "norm" in settings]


@pytest.fixture(scope="module")
def bundle_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the path of an exported bundle of a form, made once."""
    made: dict[str, Path] = {}

    def give(form: str) -> Path:
        if form not in made:
            made[form] = native(tmp_path_factory.mktemp("form") / "sae", **FORMS[form])
        return made[form]

    return give


def off_centre(n: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Activations off centre, of lengths that differ."""
    rng = np.random.default_rng(2)
    return ((make_x(n) + 0.7) * rng.uniform(0.3, 3, (n, 1)) * scale).astype(np.float32)


def expected(sae: TorchSAE, x: NDArray[np.float32]) -> tuple[witness.Matches, NDArray[np.float64]]:
    """The matches and the reconstruction of the witness, in float64."""
    architecture, weights = sae.manifest.architecture, bundle.read(sae.path).weights()
    z = witness.pre_activations(weights, witness.normalise(x, architecture.norm)[0])
    matches = _matches(architecture, weights, z)
    sums = np.where(matches.kept, z, 0) @ weights["W_dec"].astype(np.float64) + weights["b_dec"]
    return matches, witness.completed(weights, sums, x, architecture.norm)


def _matches(architecture: Architecture, weights: witness.Weights, z: NDArray[np.float64]) -> witness.Matches:
    if architecture.selection == "threshold":
        return witness.threshold(z, weights["threshold"])
    return (witness.token_choice if architecture.selection == "topk" else witness.group_choice)(z, architecture.k or 0)


def as_slots(f: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Dense activations of features in the layout that the witness compares."""
    falling = f.sort(dim=1, descending=True)
    return falling.indices.numpy(), falling.values.numpy()


@pytest.mark.parametrize("form", FORMS)
def test_features_and_reconstructions_agree_with_float64(bundle_with: Callable[[str], Path], form: str) -> None:
    sae, x = open_sae(bundle_with(form)), off_centre(200)
    rows = torch.from_numpy(x)
    matches, x_hat = expected(sae, x)
    features = sae.features(rows)
    assert witness.disagreement(matches, *as_slots(features)) is None
    assert witness.difference(x_hat, sae.decode(features, rows).numpy()) is None
    assert witness.difference(x_hat, sae(rows).numpy()) is None
    sparse, kept = reconstruct(sae, rows, sae.served)
    assert witness.difference(x_hat, sparse.numpy()) is None and torch.equal(kept, features > 0)
    assert 2 < features.count_nonzero(dim=1).double().mean() < 100, "the test sees matches and cuts"


@pytest.mark.parametrize("form", FORMS)
def test_features_and_reconstructions_agree_with_the_runtime(bundle_with: Callable[[str], Path], form: str) -> None:
    sae, runtime, x = open_sae(bundle_with(form)), load(bundle_with(form)), off_centre(200)
    features = runtime.encode(x)
    np.testing.assert_allclose(sae.features(torch.from_numpy(x)), features.to_dense(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sae(torch.from_numpy(x)), runtime.decode(features, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-28, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("form", NORMS)
def test_a_norm_holds_if_squares_overflow_or_vanish(
    bundle_with: Callable[[str], Path], form: str, scale: float
) -> None:
    sae, x = open_sae(bundle_with(form)), off_centre(20, scale)
    matches, x_hat = expected(sae, x)
    assert witness.disagreement(matches, *as_slots(sae.features(torch.from_numpy(x)))) is None
    assert witness.difference(x_hat, sae(torch.from_numpy(x)).numpy()) is None


@pytest.mark.parametrize("form", NORMS)
def test_a_norm_leaves_a_token_of_zeros_alone(bundle_with: Callable[[str], Path], form: str) -> None:
    x, mean, size = open_sae(bundle_with(form)).normalised(torch.zeros(2, 24))
    assert not x.any() and size is not None and not size.any() and (mean is None or not mean.any())


@pytest.mark.parametrize("norm", ["none", "layer", "length"])
@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_the_batch_rule_agrees_with_float64(tmp_path: Path, norm: str, kind: str) -> None:
    allocation = Allocation(kind=kind, k=5.0, quota=QUOTA if kind == "feature" else None)
    sae = open_sae(native(tmp_path / "sae", selection="threshold", norm=norm, allocation=allocation))
    x, weights = off_centre(60), bundle.read(sae.path).weights()
    z = witness.pre_activations(weights, witness.normalise(x, norm)[0])
    matches = witness.joint(z, 5.0, quota.max_densities(QUOTA, 5.0, D_SAE) if kind == "feature" else None)
    assert sae.batch is not None
    found = sae.pre_activations(torch.from_numpy(x))
    assert witness.disagreement(matches, *as_slots(torch.where(sae.batch(found), found, 0))) is None


def test_token_choice_and_unknown_allocations_have_no_batch_rule(bundle_with: Callable[[str], Path]) -> None:
    assert all(open_sae(bundle_with(form)).batch is None for form in ("topk", "groups", "threshold", "transcoder"))


def test_reconstruct_keeps_and_decodes_as_the_runtime_does(bundle_of: Callable[..., Path], kind: str) -> None:
    sae, runtime, x = open_sae(bundle_of(kind)), load(bundle_of(kind)), make_x(300)
    features = runtime.encode(x)
    x_hat, kept = reconstruct(sae, torch.from_numpy(x), sae.served)
    assert (kept.numpy() == (features.to_dense() > 0)).all()
    assert x_hat.numpy() == pytest.approx(runtime.decode(features), abs=1e-4)


def test_gradients_flow_to_activations_and_not_to_weights(bundle_with: Callable[[str], Path]) -> None:
    sae, x = open_sae(bundle_with("threshold, layer norm")), torch.from_numpy(off_centre(3)).requires_grad_()
    sae(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and not list(sae.parameters())


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_sae(tmp_path / "none")


def test_reconstruct_without_matches_gives_the_centre(bundle_of: Callable[..., Path]) -> None:
    sae = open_sae(bundle_of("mutual"))
    x_hat, kept = reconstruct(sae, torch.from_numpy(make_x(3)), lambda z: torch.zeros_like(z, dtype=torch.bool))
    assert not kept.any() and np.array_equal(x_hat.numpy(), sae.b_dec.expand(3, -1).numpy())
