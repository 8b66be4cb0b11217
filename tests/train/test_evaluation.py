import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import D_IN, joint, make_manifest, make_weights, make_x, served

from sae_runtime import bundle, quota
from sae_runtime.activations import Activations, Shard, open_activations
from sae_runtime.exports import witness
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.evaluate import shuffled
from sae_runtime.train.evaluation import EvaluateConfig, Evaluation, RuleEvaluation, evaluate
from sae_runtime.train.fitted import open_fitted

D_SAE = 150
CPU = torch.device("cpu")


def run(path: Path, x: Any, **settings: Any) -> Evaluation:
    any_source = settings.pop("any_source", False)
    source = Activations(Path("x"), [Shard(x)]) if isinstance(x, np.ndarray) else x
    return evaluate(open_fitted(path, CPU), source, EvaluateConfig(**settings), any_source=any_source)


def check(found: RuleEvaluation, parts: list[witness.Matches], x: Any, kind: str) -> None:
    """Compare with numpy, in float64, what the witness keeps of each part."""
    weights = {name: array.astype(np.float64) for name, array in make_weights(D_SAE, kind).items()}
    kept = np.concatenate([part.kept for part in parts])
    z = np.maximum((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    error = ((x - (z * kept) @ weights["W_dec"] - weights["b_dec"]) ** 2).sum(axis=1)
    spread = ((x - x.mean(axis=0)) ** 2).sum(axis=1)
    density = kept.mean(axis=0)
    assert found.fvu == pytest.approx(error.sum() / spread.sum(), rel=1e-5)
    assert found.token_fvu["0.95"] == pytest.approx(np.quantile(error / spread, 0.95), rel=1e-5)
    l0 = kept.sum(axis=1)
    assert found.l0 == pytest.approx(l0.mean())
    assert found.l0_quantiles["0.05"] == np.quantile(l0, 0.05)
    assert list(found.l0_tokens) == [int((l0 == count).sum()) for count in range(l0.max() + 1)]
    assert list(found.matches) == kept.sum(axis=0).tolist()
    assert found.dead == (density == 0).mean()
    exponent, offset, r_squared = quota.fit(density)
    assert found.zipf is not None
    assert dataclasses.astuple(found.zipf) == pytest.approx((exponent, offset, r_squared))
    law = quota.shares(quota.Quota(exponent=exponent, offset=offset), density.sum(), D_SAE)
    falling = np.sort(density)[::-1]
    assert found.under_used == pytest.approx(((falling < 0.1 * law) | (falling == 0)).mean())


def test_agrees_with_numpy(bundle_of: Callable[..., Path], kind: str) -> None:
    x = make_x(400)
    found = run(bundle_of(kind), x, batch=130)
    assert (found.rows, found.tokens, found.activations) == ("all", 400, "x")
    check(found.served, [served(kind, D_SAE, x)], x, kind)
    if kind == "token":
        assert found.batch is None
        return
    assert found.batch is not None
    size = 134  # three batches, as even as can be
    assert found.batch.batch == size
    x = x[shuffled(400)]
    check(found.batch, [joint(kind, D_SAE, x[begin : begin + size]) for begin in range(0, 400, size)], x, kind)


def test_held_out_rows_are_those_that_training_measured(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_x(3000))
    config = TrainConfig(allocation="feature", k=3, d_sae=40, tokens=6000, batch=60, seed=5)
    manifest = fit(tmp_path / "x.npy", tmp_path / "sae", config)
    found = run(tmp_path / "sae", open_activations(tmp_path / "x.npy"))
    measured = manifest.measured
    assert (found.rows, found.tokens) == ("held-out", measured["tokens"])
    assert found.served.fvu == pytest.approx(measured["fvu"], rel=1e-5)
    assert found.served.l0 == pytest.approx(measured["l0"], rel=1e-3)
    assert found.batch is not None and found.batch.batch == measured["batch"]
    assert found.batch.fvu == pytest.approx(measured["batch_fvu"], rel=1e-4)
    everything = run(tmp_path / "sae", open_activations(tmp_path / "x.npy"), rows="all")
    assert (everything.rows, everything.tokens) == ("all", 3000)
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    assert run(tmp_path / "sae", open_activations(tmp_path / "y.npy")).served == found.served
    # A copy in another type is taken for others, unless one asks.
    np.save(tmp_path / "x.npy", make_x(3000).astype(np.float64))
    copied = open_activations(tmp_path / "x.npy")
    assert run(tmp_path / "sae", copied).rows == "all"
    assert run(tmp_path / "sae", copied, rows="held-out").served == found.served
    assert run(tmp_path / "sae", copied, rows="held-out", tokens=50).tokens == 50
    with pytest.raises(ValueError, match=r"other rows than what this SAE was trained on.*--rows all"):
        run(tmp_path / "sae", make_x(2999), rows="held-out")


@pytest.mark.parametrize("provenance", [{}, {"config": 3, "rows": 4}, {"config": {"seed": 0}, "rows": {"train": 50}}])
def test_unknown_provenance_means_all_rows(tmp_path: Path, provenance: dict[str, Any]) -> None:
    manifest = dataclasses.replace(make_manifest(30, "mutual"), provenance=provenance)
    bundle.write(tmp_path / "sae", make_weights(30, "mutual"), manifest)
    assert run(tmp_path / "sae", make_x(50)).rows == "all"


def test_tokens_are_drawn_by_the_seed(bundle_of: Callable[..., Path]) -> None:
    x = make_x(300)
    first, again, other = (run(bundle_of("token"), x, tokens=40, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first.tokens == 40


def test_is_json(bundle_of: Callable[..., Path]) -> None:
    found = dataclasses.asdict(run(bundle_of("feature"), make_x(60)))
    assert json.loads(json.dumps(found, allow_nan=False))["served"]["zipf"].keys() == {
        "exponent",
        "offset",
        "r_squared",
    }


def test_no_law_where_hardly_anything_fires(tmp_path: Path) -> None:
    weights = make_weights(30, "mutual") | {"threshold": np.full(30, 1e9, np.float32)}
    bundle.write(tmp_path / "sae", weights, make_manifest(30, "mutual"))
    found = run(tmp_path / "sae", make_x(50)).served
    assert (found.zipf, found.dead, found.under_used, found.l0, found.l0_tokens) == (None, 1.0, 1.0, 0.0, (50,))


def test_refuses_what_cannot_be_measured(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    path = bundle_of("mutual")
    with pytest.raises(
        ValueError, match=f"activations have width 3, this SAE expects {D_IN}.*; was another layer captured"
    ):
        run(path, np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match="has 1 rows, a variance needs two"):
        run(path, make_x(1))
    with pytest.raises(ValueError, match="all rows are equal"):
        run(path, np.full((50, D_IN), 0.1, np.float32))
    with pytest.raises(ValueError, match="features overflow float32"):
        run(path, make_x(50) * np.float32(5e37))
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        x = make_x(50)
        x[3, 0] = np.nan
        run(path, x)
    manifest = dataclasses.replace(make_manifest(30, "token"), model="a", hook="h")
    bundle.write(tmp_path / "sae", make_weights(30, "token"), manifest)
    other = Activations(Path("x"), [Shard(make_x(50))], model="b", hook="h")
    with pytest.raises(
        ValueError,
        match="come from model 'b', this SAE was fitted on 'a'; harvest those, or pass --any-source",
    ):
        run(tmp_path / "sae", other)
    assert run(tmp_path / "sae", other, any_source=True).tokens == 50


def test_config_is_checked() -> None:
    for settings in ({"rows": "some"}, {"tokens": 1}, {"batch": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            EvaluateConfig(**settings)
