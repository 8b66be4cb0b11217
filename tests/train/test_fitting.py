import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.exports import witness
from sae_runtime.exports.export import export
from sae_runtime.train import TrainConfig, fit, fit_many
from sae_runtime.train.held_out import split
from sae_runtime.train.stored_rows import StoredRows
from sae_runtime.train.trainer import StepStats, Trainer

D_IN, TRUE, K = 20, 48, 4


def planted(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Activations that are sums of a few of 48 unit directions, active by a Zipf law, and these directions."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(7).standard_normal((TRUE, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rate = 0.5 / (np.arange(TRUE) + 3.0) ** 0.7
    rate *= K / rate.sum()
    strength = (rng.random((n, TRUE)) < rate) * rng.uniform(1, 2, (n, TRUE))
    x = 30 * (strength @ directions + rng.normal(0, 0.02, (n, D_IN)) + 0.5)
    return x.astype(np.float32), directions


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{"allocation": "mutual", "k": float(K), "d_sae": 64, "tokens": 250_000, "batch": 500, **changes}
    )


class Counted(StoredRows):
    """Stored rows that count how often their held-out parts are read."""

    reads = 0

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.reads += 1
        return super().held_out()


def source(x: NDArray[np.float32], pool_rows: int) -> Counted:
    """The source that `fit` makes of an array, with a pool of `pool_rows` rows."""
    activations = Activations(Path("array"), [Shard(x)])
    return Counted(activations, split(activations, 0.1, 0), pool_rows)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def give(allocation: str) -> Path:
        if allocation not in made:
            made[allocation] = tmp_path_factory.mktemp("fitted") / allocation
            fit(planted(30_000)[0], made[allocation], config(allocation=allocation))
            export(made[allocation])
        return made[allocation]

    return give


def test_fit_learns_a_planted_dictionary(fitted: Callable[[str], Path], kind: str) -> None:
    sae = load(fitted(kind))
    _, directions = planted(1)
    rows = bundle.read(fitted(kind)).tensor("W_dec")
    found = (directions @ rows.T).max(axis=1)
    assert (found > 0.85).mean() > 0.65, f"{(found > 0.85).sum()} of {TRUE} directions were found"
    assert sae.manifest.measured["fvu"] < 0.2


def test_a_fitted_bundle_serves_what_fit_measured(fitted: Callable[[str], Path], kind: str) -> None:
    sae = load(fitted(kind))
    x, _ = planted(5000, seed=5)
    features = sae.encode(x)
    error = ((x - sae.decode(features)) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert error == pytest.approx(sae.manifest.measured["fvu"], rel=0.1)
    # Served mean L0 within 3 % of k on text that neither fitting nor calibration saw.
    tolerance = 0.03 if kind != "token" else 1.0
    assert features.l0().mean() == pytest.approx(K, rel=tolerance)
    assert features.l0().mean() <= K * 1.03


def test_onnxruntime_serves_what_numpy_computes(fitted: Callable[[str], Path], kind: str) -> None:
    read = bundle.read(fitted(kind))
    weights = {name: read.tensor(name) for name in read.specs}
    x, _ = planted(300, seed=6)
    z = witness.pre_activations(weights, x)
    expected = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
    found = load(read.path).encode(x).to_dense() > 0
    # The cut of z and the kept set agree but for values within rounding of the cut.
    assert (found != expected.kept).sum() <= 1


def test_feature_choice_saves_features_by_falling_quota(fitted: Callable[[str], Path]) -> None:
    manifest = bundle.read(fitted("feature")).manifest
    assert manifest.batch_allocation.quota is not None
    max_density = quota.max_densities(manifest.batch_allocation.quota, K, 64)
    assert (np.diff(max_density) <= 0).all()
    dense = load(fitted("feature")).encode(planted(5000, seed=5)[0]).to_dense() > 0
    assert (dense.mean(axis=0) <= max_density * 1.25 + 0.01).all()


def test_fit_reads_the_held_out_rows_once(tmp_path: Path) -> None:
    x, configs = planted(2000)[0], {"a": config(tokens=5000), "b": config(tokens=5000, k=2.0)}
    rows = source(x, 10**6)
    fit_many(rows, tmp_path / "saes", configs)
    assert rows.reads == 1
    fit(x, tmp_path / "a", configs["a"])
    for file in (tmp_path / "a").iterdir():  # the sample of activations is one of the files
        assert file.name == bundle.MANIFEST or (tmp_path / "saes" / "a" / file.name).read_bytes() == file.read_bytes()


def test_d_sae_is_eight_times_d_in_by_default(tmp_path: Path) -> None:
    x = planted(2000)[0][:, :13]
    manifest = fit(x, tmp_path / "sae", TrainConfig(k=4, tokens=1000, batch=500))
    assert manifest.architecture.d_sae == manifest.provenance["recipe"]["d_sae"] == 112, "a multiple of 16"
    assert manifest.provenance["config"]["d_sae"] is None
    with pytest.raises(ValueError, match=r"k must be in \(0, d_sae=112\], got 120"):
        fit(x, tmp_path / "other", TrainConfig(k=120, tokens=1000, batch=500))


def test_two_runs_with_one_seed_are_equal_bit_for_bit(tmp_path: Path) -> None:
    x, _ = planted(2000)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(x, tmp_path / name, config(tokens=5000, seed=seed))
    first, second, other = ((tmp_path / name / bundle.WEIGHTS).read_bytes() for name in "abc")
    assert first == second != other


def test_metrics_of_fit_are_json_lines(tmp_path: Path) -> None:
    fit(planted(2000)[0], tmp_path / "sae", config(tokens=12_500), metrics=tmp_path / "logs" / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "logs" / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert lines[-1]["tokens"] == 12_500 and {"fvu", "l0", "dead", "under_used", "aux", "lr"} <= set(lines[-1])


def test_manifest_records_config_recipe_and_rows(fitted: Callable[[str], Path], kind: str) -> None:
    manifest = bundle.read(fitted(kind)).manifest
    assert manifest.provenance["config"]["d_sae"] == 64 and manifest.provenance["recipe"]["steps"] == 500
    assert manifest.provenance["rows"]["train"] == 30_000 - 2 * manifest.measured["tokens"]
    assert manifest.measured["dead_tokens"] == 2 * manifest.measured["tokens"]
    assert ("batch_fvu" in manifest.measured) == (kind != "token")


def test_fit_refuses_bad_activations_and_leaves_no_file(tmp_path: Path) -> None:
    x, _ = planted(2000)
    x[1234, 5] = np.nan
    with pytest.raises(ValueError, match="row 1234 holds NaN or Inf"):
        fit(x, tmp_path / "sae", config(tokens=50_000))
    with pytest.raises(ValueError, match=r"must be \[n, d_in\], got \[4, 5, 6\]"):
        fit(np.zeros((4, 5, 6)), tmp_path / "sae", config())
    assert list(tmp_path.iterdir()) == []


def test_existing_bundle_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    with pytest.raises(FileExistsError, match=r"sae already exists; pass --force"):
        fit("no such activations", tmp_path / "sae", config())


def test_a_batch_larger_than_the_held_out_part_is_recorded_with_its_true_size(tmp_path: Path) -> None:
    manifest = fit(planted(600)[0], tmp_path / "sae", config(tokens=1000))
    assert (manifest.measured["batch"], manifest.measured["tokens"]) == (30, 30)


def test_fit_many_fits_each_sae_as_fit_does_bit_for_bit(tmp_path: Path) -> None:
    x = planted(3000)[0]
    configs = {
        f"{kind}-k{k}": config(allocation=kind, k=float(k), tokens=20_000, d_sae=d_sae, pool=1)
        for kind, k, d_sae in (("token", 4, 64), ("mutual", 4, 64), ("feature", 6, 96))
    }
    manifests = fit_many(x, tmp_path / "saes", configs)
    assert [path.name for path in sorted((tmp_path / "saes").iterdir())] == sorted(configs)
    for name, one in configs.items():
        alone = fit(x, tmp_path / name, one)
        both = [(path / bundle.WEIGHTS).read_bytes() for path in (tmp_path / name, tmp_path / "saes" / name)]
        assert both[0] == both[1], name
        assert alone == manifests[name]


def test_metrics_of_several_saes_name_the_sae(tmp_path: Path) -> None:
    configs = {"a": config(tokens=10_000), "b": config(tokens=10_000, k=2.0)}
    fit_many(planted(2000)[0], tmp_path / "saes", configs, metrics=tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(line["sae"], line["step"]) for line in lines] == [("a", 10), ("b", 10), ("a", 20), ("b", 20)]
    assert [round(line["l0"]) for line in lines[:2]] == [4, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "SAEs of one pass share seed, got 0 for a and 1 for b; make them equal, or fit them one by one"),
        ({"batch": 50}, "SAEs of one pass share batch, got 500 for a and 50 for b"),
        ({"tokens": 501}, "SAEs of one pass share tokens"),
        ({"holdout": 0.2}, "SAEs of one pass share holdout"),
        ({"pool": 3}, "SAEs of one pass share pool"),
        ({"device": "cpu"}, "SAEs of one pass share device"),
    ],
)
def test_fit_many_refuses_configs_that_need_different_batches(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_many(planted(600)[0], tmp_path / "saes", {"a": config(), "b": config(**change)})
    assert not (tmp_path / "saes").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_fit_many_refuses_names_that_are_no_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a folder; rename that SAE"):
        fit_many(planted(600)[0], tmp_path / "saes", {name: config()})
    with pytest.raises(ValueError, match="there is nothing to fit; give one config at least"):
        fit_many(planted(600)[0], tmp_path / "saes", {})


def test_an_error_of_one_among_several_saes_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def failing(self: Trainer, x: Any) -> StepStats:
        return step(self, x * float("nan") if self.config.k == 2 and self.step_number == 3 else x)

    x, configs = planted(600)[0], {"a": config(), "b": config(k=2.0)}
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="^b: the loss or its gradient is not finite"):
        patch.setattr(Trainer, "step", failing)
        fit_many(x, tmp_path / "saes", configs)
    with pytest.raises(MemoryError, match="^huge: .*; give smaller batches or fewer features"):
        fit_many(x, tmp_path / "saes", {"a": config(), "huge": config(d_sae=10**12)})
    assert list(tmp_path.iterdir()) == []


def test_activations_larger_than_a_pool_are_learned_as_well(tmp_path: Path) -> None:
    settings = config(tokens=100_000)
    whole = fit(source(planted(8000)[0], 10**6), tmp_path / "whole", settings)
    pools = fit(source(planted(8000)[0], 500), tmp_path / "pools", settings)
    assert pools.measured["fvu"] == pytest.approx(whole.measured["fvu"], rel=0.15)
    weights = [(tmp_path / name / bundle.WEIGHTS).read_bytes() for name in ("whole", "pools")]
    assert weights[0] != weights[1]


def test_tensorboard_that_is_not_installed_is_refused_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    with pytest.raises(
        ImportError, match=r"^tensorboard not installed; run: pip install 'sae-runtime\[tensorboard\]'$"
    ):
        fit(
            np.ones((50, 3)),
            tmp_path / "sae",
            TrainConfig(k=1, d_sae=4, tokens=64, batch=32),
            tensorboard=tmp_path / "t",
        )
