import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, joint, make_manifest, make_weights, make_x, served
from native import native

from sae_runtime import load
from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.evaluation_file import Evaluation, RuleEvaluation, read_evaluation, to_json
from sae_runtime.exports import witness
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.evaluation import evaluate
from sae_runtime.train.measure.rules import shuffled
from sae_runtime.train.measure.torch_sae import open_sae

D_SAE = 150


def run(path: Path, x: Any, **settings: Any) -> Evaluation:
    options = {name: settings.pop(name) for name in ("any_source", "targets") if name in settings}
    return evaluate(open_sae(path), given(x), EvaluateConfig(**settings), **options)


def given(x: Any, name: str = "x") -> Activations:
    return Activations(Path(name), [Shard(x)]) if isinstance(x, np.ndarray) else x


def check(found: RuleEvaluation, parts: list[witness.Matches], x: Any, kind: str) -> None:
    """Compare with numpy, in float64, what the witness keeps of each part."""
    weights = {name: array.astype(np.float64) for name, array in make_weights(D_SAE, kind).items()}
    kept = np.concatenate([part.kept for part in parts])
    z = np.maximum((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    error = ((x - (z * kept) @ weights["W_dec"] - weights["b_dec"]) ** 2).sum(axis=1)
    spread = ((x - x.mean(axis=0)) ** 2).sum(axis=1)
    density = kept.mean(axis=0)
    assert found.fvu == pytest.approx(error.sum() / spread.sum(), rel=1e-5)
    assert found.explained_variance == pytest.approx(1 - error.sum() / spread.sum(), rel=1e-5)
    assert found.token_fvu is not None
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
    law = quota.quotas(quota.Quota(exponent=exponent, offset=offset), density.sum(), D_SAE)
    falling = np.sort(density)[::-1]
    assert found.under_used == pytest.approx(((falling < 0.1 * law) | (falling == 0)).mean())


def test_an_evaluation_agrees_with_numpy(bundle_of: Callable[..., Path], kind: str) -> None:
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
    with pytest.raises(ValueError, match=r"other rows than this SAE.s training.*--rows all"):
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


def test_an_evaluation_that_is_written_and_read_is_the_same(
    bundle_of: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    found = run(bundle_of(kind), make_x(60))
    (tmp_path / "e.json").write_text(to_json(found))
    assert read_evaluation(tmp_path / "e.json") == found
    assert (found.bundle, found.name) == (str(bundle_of(kind)), f"{kind}-150")
    assert found.architecture == bundle.read(bundle_of(kind)).manifest.architecture


def test_a_file_that_is_no_evaluation_is_refused(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    path, written = tmp_path / "e.json", json.loads(to_json(run(bundle_of("mutual"), make_x(60))))
    with pytest.raises(FileNotFoundError, match=r"e\.json does not exist; make it: sae-runtime evaluate BUNDLE -o"):
        read_evaluation(path)
    with pytest.raises(ValueError, match="is a folder, expected the JSON file of an evaluation"):
        read_evaluation(bundle_of("mutual"))
    for changes, message in (
        ({"schema_version": 7}, "the evaluation has schema version 7, this sae-runtime reads 1"),
        ({"tokens": "many"}, r"the evaluation\.tokens must be int, got 'many'"),
        ({"served": {**written["served"], "l0": None}}, r"the evaluation\.served\.l0 must be float, got None"),
        (
            {"architecture": {**written["architecture"], "norm": "odd"}},
            "norm must be one of none, layer, length, got 'odd'",
        ),
    ):
        path.write_text(json.dumps(written | changes))
        with pytest.raises(ValueError, match=rf"e\.json: {message}; make it again with sae-runtime evaluate -o"):
            read_evaluation(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not readable JSON"):
        read_evaluation(path)


@pytest.mark.parametrize("form", ["layer", "length", "groups", "skip"])
def test_every_architecture_is_evaluated_as_the_runtime_serves_it(tmp_path: Path, form: str) -> None:
    changes: dict[str, Any] = (
        {"selection": "threshold", "norm": form}
        if form in ("layer", "length")
        else {
            "groups": {"selection": "groupmax", "k": 5},
            "skip": {"selection": "topk", "k": 5, "skip": True},
        }[form]
    )
    path, x = native(tmp_path / "sae", **changes), make_x(200)
    found, runtime = run(path, x), load(path)
    features = runtime.encode(x)
    error = np.square(x - runtime.decode(features, x), dtype=np.float64).sum()
    assert found.served.fvu == pytest.approx(error / np.square(x - x.mean(axis=0), dtype=np.float64).sum(), rel=1e-4)
    assert found.served.l0 == features.l0().mean() and found.batch is None


def test_a_transcoder_is_measured_against_its_targets(tmp_path: Path) -> None:
    path, x = native(tmp_path / "sae", selection="topk", k=5, pre_bias=False, d_out=7, skip=True), make_x(200)
    runtime = load(path)
    features = runtime.encode(x)
    without = run(path, x).served
    assert (without.fvu, without.explained_variance, without.token_fvu) == (None, None, None)
    assert without.l0 == features.l0().mean()
    y = runtime.decode(features, x) + make_x(200, seed=4)[:, :7]
    found = run(path, x, targets=given(y, "y"), tokens=50).served
    rows = np.sort(np.random.default_rng(0).choice(200, 50, replace=False))
    error = np.square(y - runtime.decode(features, x), dtype=np.float64)[rows].sum()
    spread = np.square(y[rows] - y[rows].mean(axis=0), dtype=np.float64).sum()
    assert found.fvu == pytest.approx(error / spread, rel=1e-5)
    with pytest.raises(ValueError, match=r"the targets y are \[100, 7\], expected \[200, 7\], a row for each row"):
        run(path, x, targets=given(y[:100], "y"))


def test_targets_of_an_autoencoder_are_refused(bundle_of: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="is no transcoder and reconstructs the activations themselves"):
        run(bundle_of("token"), make_x(20), targets=given(make_x(20)))


def test_an_evaluation_of_silent_features_has_no_zipf_law(tmp_path: Path) -> None:
    weights = make_weights(30, "mutual") | {"threshold": np.full(30, 1e9, np.float32)}
    bundle.write(tmp_path / "sae", weights, make_manifest(30, "mutual"))
    found = run(tmp_path / "sae", make_x(50)).served
    assert (found.zipf, found.dead, found.under_used, found.l0, found.l0_tokens) == (None, 1.0, 1.0, 0.0, (50,))


def test_evaluate_refuses_activations_that_it_cannot_measure(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    path = bundle_of("mutual")
    with pytest.raises(
        ValueError, match=f"activations have d_in 3, this SAE expects {D_IN}.*; was another layer captured"
    ):
        run(path, np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match="has 1 rows, a variance needs at least two"):
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
        match=r"come from model 'b', this SAE was fitted on 'a'; harvest those \(.*--name .*\), or pass --any-source",
    ):
        run(tmp_path / "sae", other)
    assert run(tmp_path / "sae", other, any_source=True).tokens == 50


def test_evaluate_config_refuses_values_out_of_range() -> None:
    for settings in ({"rows": "some"}, {"tokens": 1}, {"batch": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            EvaluateConfig(**settings)
