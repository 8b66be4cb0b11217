"""Small and degenerate data: every fit ends in a bundle with right figures, or in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.bundle import folder as bundles
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.evaluation import evaluate
from sae_runtime.train.measure.torch_sae import open_sae
from sae_runtime.train.trainer import DefaultLaw

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = NDArray[np.float32]
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((3000, 6)).astype(np.float32)
HALF = np.where(np.arange(3000)[:, None] % 2 == 0, BASE, BASE[:1])
DATA: dict[str, Rows] = {
    "one column": BASE[:, :1],
    "one column of two values": np.sign(BASE[:, :1]),
    "one constant column": np.concatenate([BASE, np.full((3000, 1), 7, np.float32)], axis=1),
    "half of the rows equal": HALF,
    "half of the rows 0": HALF - BASE[:1],
    "small": BASE * np.float32(1e-15),
    "large": BASE * np.float32(1e15),
}


def config(kind: str, **changes: Any) -> TrainConfig:
    settings = {"allocation": kind, "k": 1, "d_sae": 30, "tokens": 8_000, "batch": 100}
    return TrainConfig(**{**settings, **changes})


def served(path: Path, x: Rows, k: int) -> tuple[float, float]:
    """FVU and mean L0 in float64."""
    weights = {name: tensor.astype(np.float64) for name, tensor in bundles.read(path).weights().items()}
    z = np.maximum((x.astype(np.float64) - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    if "threshold" in weights:
        f = z * (z > weights["threshold"])
    else:
        f, largest = np.zeros_like(z), np.argsort(-z, axis=1, kind="stable")[:, :k]
        np.put_along_axis(f, largest, np.take_along_axis(z, largest, axis=1), axis=1)
    error = np.square(x - f @ weights["W_dec"] - weights["b_dec"]).sum()
    return float(error / np.square(x - x.mean(axis=0, dtype=np.float64)).sum()), float((f > 0).sum(axis=1).mean())


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
@pytest.mark.parametrize("d_sae", [1, 30])
@pytest.mark.parametrize("name", DATA)
def test_odd_data_gives_a_bundle_with_right_figures(tmp_path: Path, name: str, d_sae: int, kind: str) -> None:
    x = DATA[name]
    law = {"exponent": 0.5} if d_sae < 20 else {}
    measured = fit(x, tmp_path / "sae", config(kind, d_sae=d_sae, **law)).measured
    assert np.isfinite(list(measured.values())).all()
    found = evaluate(open_sae(tmp_path / "sae"), rows(x), EvaluateConfig(rows="all")).served
    fvu, l0 = served(tmp_path / "sae", x, k=1)
    assert found.fvu == pytest.approx(fvu, rel=1e-3, abs=1e-4) and found.l0 == pytest.approx(l0, abs=0.01)
    if kind != "token":
        again = calibrate_bundle(tmp_path / "sae", rows(x), k=1, out=tmp_path / "again").measured
        assert again["l0"] <= 2 and np.isfinite(again["fvu"])


def rows(x: Rows) -> Activations:
    return Activations(Path("x.npy"), [Shard(np.ascontiguousarray(x))])


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_rows_are_refused(tmp_path: Path, kind: str, noise: float) -> None:
    x = (3 + noise * BASE).astype(np.float32)
    with pytest.raises(ValueError, match="array: all rows are equal or nearly 0, there is nothing to fit"):
        fit(x, tmp_path / "sae", config(kind))


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_held_out_rows_without_variance_have_no_fvu(tmp_path: Path, kind: str) -> None:
    x = np.ones((3000, 6), np.float32)
    x[0] = 5  # a training row
    measured = fit(x, tmp_path / "sae", config(kind, exponent=1.0)).measured
    assert not {"fvu", "batch_fvu"} & measured.keys() and np.isfinite(list(measured.values())).all()


@pytest.mark.parametrize("different", [2, 4])
def test_feature_choice_with_too_few_active_features_takes_a_default_law(tmp_path: Path, different: int) -> None:
    x = BASE[:different][RNG.integers(0, different, 3000)]
    with pytest.warns(DefaultLaw, match=r"got \d+; .* quotas fall with the exponent 1; or give --exponent"):
        manifest = fit(x, tmp_path / "sae", config("feature"))
    assert manifest.allocation is not None and manifest.allocation.quota is not None
    assert manifest.allocation.quota.exponent == 1
    assert manifest.provenance["quota_default"] == "too few features were active to fit a law"


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_a_batch_of_equal_rows_does_not_end_a_run(kind: str) -> None:
    from sae_runtime.train.recipe import derive
    from sae_runtime.train.step.model import SparseAutoencoder
    from sae_runtime.train.trainer import Trainer

    settings = config(kind, exponent=0.5)
    model = SparseAutoencoder(30, torch.zeros(6), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, settings, derive(settings, 6), rng=np.random.default_rng(0))
    for step in range(20):
        x = torch.from_numpy(BASE[step * 100 : step * 100 + 100])
        trainer.step(x[:1].expand(100, 6).contiguous() if step % 4 == 2 else x)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
