"""Fits beside rows of massive norm. The witness is a fit on the same rows without them: every bit must be equal."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_x
from native import native
from numpy.typing import NDArray
from processes import together
from safetensors.torch import save_file
from tiny_model import save_gpt2, write_words

from sae_runtime import load
from sae_runtime.activations.left_out import ManyRowsLeftOut
from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.evaluation_file import HostLoss, read_evaluation, to_json
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.exports.export import export
from sae_runtime.train import TrainConfig, fit, fit_many
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest
from sae_runtime.train.harvest.stream import StreamedRows
from sae_runtime.train.held_out import split
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.evaluation import evaluate
from sae_runtime.train.measure.torch_sae import open_sae
from sae_runtime.train.trainer import StepStats, Trainer

D_IN, D_SAE = 12, 40

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n: int = 3000) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, D_IN)) * rng.uniform(0.5, 2, D_IN)).astype(np.float32)


def with_massive(x: NDArray[np.float32], ratio: float, share: float = 1 / 50) -> tuple[Any, NDArray[np.bool_]]:
    """Rows of massive norm put between those of x, and which rows they are."""
    rng = np.random.default_rng(1)
    massive = np.zeros(round(len(x) / (1 - share)), np.bool_)
    massive[rng.choice(len(massive), len(massive) - len(x), replace=False)] = True
    y = np.empty((len(massive), D_IN), np.float32)
    y[~massive] = x
    direction = rng.standard_normal((int(massive.sum()), D_IN)) * 0.1 + np.eye(D_IN)[3]
    size = ratio * np.median(np.linalg.norm(x, axis=1))
    y[massive] = direction * size / np.linalg.norm(direction, axis=1, keepdims=True)
    return y, massive


def config(**changes: Any) -> TrainConfig:
    settings = {"allocation": "mutual", "k": 3.0, "d_sae": D_SAE, "tokens": 128 * 40, "batch": 128}
    return TrainConfig(**{**settings, **changes})


def weights(path: Path) -> bytes:
    return (path / WEIGHTS).read_bytes()


def figures(path: Path, x: NDArray[np.float32]) -> tuple[float, float, NDArray[np.bool_]]:
    """FVU and L0 by the served rule on rows, in float64, and the matches [n, d_sae]."""
    read = bundle.read(path)
    w = {name: np.array(read.tensor(name)).astype(np.float64) for name in read.specs}
    wide = x.astype(np.float64)
    z = np.maximum((wide - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    if "threshold" in w:
        kept = z > w["threshold"]
    else:
        kept = (z >= np.sort(z, axis=1)[:, -read.manifest.slots][:, None]) & (z > 0)
    error = ((wide - (z * kept) @ w["W_dec"] - w["b_dec"]) ** 2).sum()
    return error / ((wide - wide.mean(axis=0)) ** 2).sum(), float(kept.sum(axis=1).mean()), kept


@pytest.mark.parametrize("ratio", [12.0, 50.0, 3e4])
@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_a_fit_beside_massive_rows_is_the_fit_without_them(kind: str, ratio: float, tmp_path: Path) -> None:
    x = rows()
    y, massive = with_massive(x, ratio)
    alone = fit(x, tmp_path / "alone", config(allocation=kind))
    beside = fit(y, tmp_path / "beside", config(allocation=kind))
    assert weights(tmp_path / "alone") == weights(tmp_path / "beside")
    assert beside.measured == alone.measured and beside.slots == alone.slots
    assert beside.provenance["rows"] == alone.provenance["rows"]
    assert alone.measured_with_left_out == {}
    assert alone.left_out is not None and set(alone.left_out.rows.values()) == {0}
    assert beside.left_out is not None and beside.left_out.norm_multiple == 10.0
    assert sum(beside.left_out.rows.values()) == massive.sum()


@pytest.mark.parametrize("kind", ["token", "mutual"])
def test_figures_with_and_without_massive_rows_are_those_of_numpy(kind: str, tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 200.0)
    manifest = fit(y, tmp_path / "sae", config(allocation=kind, holdout=0.3))
    ordinary = np.flatnonzero(~massive)
    parts = split(Activations(Path("array"), [Shard(y)]), 0.3, 0, rows=ordinary)
    # A massive row goes with the next ordinary one.
    after = {part: set(getattr(parts, part).tolist()) for part in ("calibration", "validation")}
    left: dict[str, list[int]] = {"calibration": [], "validation": []}
    for row in np.flatnonzero(massive):
        later = ordinary[ordinary > row]
        neighbour = int(later[0] if len(later) else ordinary[-1])
        for part, members in after.items():
            left[part] += [int(row)] if neighbour in members else []
    fvu, l0, seen = figures(tmp_path / "sae", y[parts.validation])
    also = figures(tmp_path / "sae", y[parts.calibration])[2]
    assert manifest.measured["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert manifest.measured["l0"] == pytest.approx(l0, rel=1e-3)
    assert manifest.measured["dead"] == pytest.approx(1 - (seen.any(axis=0) | also.any(axis=0)).mean())
    assert manifest.left_out is not None
    assert {part: manifest.left_out.rows[part] for part in left} == {part: len(ids) for part, ids in left.items()}
    fvu, l0, seen = figures(tmp_path / "sae", y[[*parts.validation, *left["validation"]]])
    also = figures(tmp_path / "sae", y[[*parts.calibration, *left["calibration"]]])[2]
    found = manifest.measured_with_left_out
    assert found["tokens"] == len(parts.validation) + len(left["validation"])
    assert found["fvu"] == pytest.approx(fvu, rel=1e-4) and found["l0"] == pytest.approx(l0, rel=1e-3)
    assert found["dead"] == pytest.approx(1 - (seen.any(axis=0) | also.any(axis=0)).mean())
    assert found.keys() == manifest.measured.keys()


def test_clean_rows_give_the_same_bits_with_the_rule_and_without(tmp_path: Path) -> None:
    with_rule = fit(rows(), tmp_path / "rule", config())
    without = fit(rows(), tmp_path / "none", config(max_norm=None))
    assert weights(tmp_path / "rule") == weights(tmp_path / "none")
    assert (tmp_path / "rule" / "sample.safetensors").read_bytes() == (
        tmp_path / "none" / "sample.safetensors"
    ).read_bytes()
    same = {name: value for name, value in vars(with_rule).items() if name not in ("left_out", "provenance")}
    assert same == {name: value for name, value in vars(without).items() if name in same}
    assert without.left_out is not None and without.left_out.norm_multiple is None


def test_no_limit_trains_on_massive_rows(tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 300.0)
    manifest = fit(y, tmp_path / "sae", config(max_norm=math.inf))
    assert sum(manifest.provenance["rows"].values()) == len(y) and manifest.measured_with_left_out == {}
    assert manifest.measured["fvu"] < 0.1, "the massive rows own the variance"


def test_a_third_of_the_rows_is_left_out_with_a_warning(tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 40.0, share=0.3)
    with pytest.warns(ManyRowsLeftOut, match=r"array: 30\.0% of the rows have more than 10 times the median norm"):
        manifest = fit(y, tmp_path / "sae", config())
    alone = fit(rows(), tmp_path / "alone", config())
    assert manifest.measured == alone.measured and weights(tmp_path / "sae") == weights(tmp_path / "alone")
    assert manifest.left_out is not None and sum(manifest.left_out.rows.values()) == massive.sum()


def harvest_folder(path: Path, x: NDArray[np.float32], documents: NDArray[np.int32], dtype: torch.dtype) -> Activations:
    ids = {"tokens": documents, "documents": documents, "positions": documents}
    tensors = {name: torch.from_numpy(ids[name].copy()) for name in ids}
    save_file({"activations": torch.from_numpy(x).to(dtype), **tensors}, path)
    return open_activations(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_massive_rows_of_one_document_are_left_out_of_a_file_of_documents(dtype: torch.dtype, tmp_path: Path) -> None:
    x, documents = rows(), (np.arange(3000) // 60).astype(np.int32)
    y, also = np.insert(x, 1234, 200 * x[:7], axis=0), np.insert(documents, 1234, [documents[1234]] * 7)
    alone = fit(harvest_folder(tmp_path / "x.safetensors", x, documents, dtype), tmp_path / "alone", config())
    beside = fit(harvest_folder(tmp_path / "y.safetensors", y, also, dtype), tmp_path / "beside", config())
    assert weights(tmp_path / "alone") == weights(tmp_path / "beside") and alone.measured == beside.measured
    assert beside.left_out is not None and sorted(beside.left_out.rows.values()) == [0, 0, 7]


def test_several_saes_of_one_pass_leave_out_the_same_rows(tmp_path: Path) -> None:
    y, _ = with_massive(rows(), 100.0)
    configs = {"two": config(k=2.0), "four": config(k=4.0)}
    together = fit_many(y, tmp_path / "many", configs)
    for name, one in configs.items():
        assert fit(y, tmp_path / name, one).measured_with_left_out == together[name].measured_with_left_out
        assert weights(tmp_path / name) == weights(tmp_path / "many" / name)
    with pytest.raises(ValueError, match=r"SAEs of one pass share max_norm, got 10\.0 for two and 20\.0 for four"):
        fit_many(y, tmp_path / "other", {**configs, "four": config(max_norm=20.0)})


class Stopped(Exception):
    pass


def test_a_run_that_was_killed_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    y, _ = with_massive(rows(), 100.0)
    fit(y, tmp_path / "whole", config())
    step = Trainer.step

    def dying(self: Trainer, x: Any) -> StepStats:
        if self.step_number == 17:
            raise Stopped
        return step(self, x)

    state: dict[str, Any] = {"run_state": tmp_path / "run", "run_state_seconds": 0}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "step", dying)
        fit(y, tmp_path / "sae", config(), **state)
    with pytest.raises(ValueError, match=r"max_norm 10\.0, this one has 20\.0; repeat that run's settings"):
        fit(y, tmp_path / "sae", config(max_norm=20.0), **state, resume=True)
    found = fit(y, tmp_path / "sae", config(), **state, resume=True)
    assert weights(tmp_path / "sae") == weights(tmp_path / "whole")
    assert found.left_out == bundle.read(tmp_path / "whole").manifest.left_out


def _fitted_beside_massive_rows(path: str) -> dict[str, Any]:
    manifest = fit(np.load(path), f"{path}-sae", config())
    return {"left out": sum(manifest.left_out.rows.values()) if manifest.left_out else 0}


def test_several_processes_leave_out_the_same_rows(tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 100.0)
    np.save(tmp_path / "y.npy", y)
    found = together(tmp_path, _fitted_beside_massive_rows, str(tmp_path / "y.npy"))
    assert [result["left out"] for result in found] == [massive.sum()] * 2
    alone = fit(y, tmp_path / "alone", config())
    shared = bundle.read(tmp_path / "y.npy-sae").manifest
    assert shared.left_out == alone.left_out
    assert shared.measured["fvu"] == pytest.approx(alone.measured["fvu"], rel=1e-3)


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_evaluate_finds_the_validation_rows_of_the_fit_again(kind: str, tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 70.0)
    np.save(tmp_path / "y.npy", y)
    manifest = fit(tmp_path / "y.npy", tmp_path / "sae", config(allocation=kind))
    found = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig())
    assert (found.rows, found.tokens, found.max_norm) == ("held-out", manifest.measured["tokens"], 10.0)
    assert manifest.left_out is not None and found.left_out == manifest.left_out.rows["validation"] > 0
    assert found.served.fvu == pytest.approx(manifest.measured["fvu"], rel=1e-5)
    with_left_out = found.served.with_left_out
    assert with_left_out is not None
    assert with_left_out.fvu == pytest.approx(manifest.measured_with_left_out["fvu"], rel=1e-5)
    assert with_left_out.l0 == pytest.approx(manifest.measured_with_left_out["l0"], rel=1e-4)
    if found.batch is not None:
        assert found.batch.with_left_out is not None
        expected = manifest.measured_with_left_out["batch_fvu"]
        assert found.batch.with_left_out.fvu == pytest.approx(expected, rel=1e-4)
    none = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig(max_norm=math.inf))
    assert (none.left_out, none.max_norm, none.served.with_left_out) == (0, None, None)
    assert none.tokens == manifest.measured_with_left_out["tokens"] and none.served.fvu == with_left_out.fvu
    every = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig(rows="all"))
    assert (every.tokens, every.left_out) == (len(y) - massive.sum(), massive.sum())
    assert every.served.fvu == pytest.approx(figures(tmp_path / "sae", y[~massive])[0], rel=1e-5)
    assert every.served.with_left_out is not None
    assert every.served.with_left_out.fvu == pytest.approx(figures(tmp_path / "sae", y)[0], rel=1e-4)


def test_a_transcoder_leaves_out_rows_whose_target_is_massive(tmp_path: Path) -> None:
    x, target = make_x(500), make_x(500, seed=3)[:, :7].copy()
    target[[5, 80]] *= 100
    x[7] *= 100
    path = native(tmp_path / "sae", selection="topk", k=5, pre_bias=False, d_out=7)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", target)
    found = evaluate(open_sae(path), tmp_path / "x.npy", EvaluateConfig(), targets=tmp_path / "y.npy")
    assert (found.tokens, found.left_out) == (len(x) - 3, 3)
    kept = np.delete(np.arange(len(x)), [5, 7, 80])
    np.save(tmp_path / "x.npy", x[kept])
    np.save(tmp_path / "y.npy", target[kept])
    alone = evaluate(open_sae(path), tmp_path / "x.npy", EvaluateConfig(), targets=tmp_path / "y.npy")
    assert alone.left_out == 0 and found.served.fvu == alone.served.fvu


def test_an_evaluation_with_and_without_is_written_and_read(tmp_path: Path) -> None:
    y, _ = with_massive(rows(), 70.0)
    fit(y, tmp_path / "sae", config())
    np.save(tmp_path / "y.npy", y)
    found = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig())
    numbers: dict[str, Any] = {
        "model": "m",
        "hook": "h",
        "text": ("t",),
        "tokens": 3,
        "windows": 1,
        "special": False,
        "batch": 3.0,
    }
    one = HostLoss(**numbers, cross_entropy=1.5, replaced={"zero": {"kl": 1.0}})
    found = replace(found, host=replace(one, left_out=2, max_norm=10.0, with_left_out=one))
    (tmp_path / "e.json").write_text(to_json(found))
    assert read_evaluation(tmp_path / "e.json") == found


def test_evaluate_and_calibrate_use_the_bundles_own_rule(tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 30.0)
    np.save(tmp_path / "y.npy", y)
    fit(rows(), tmp_path / "sae", config(max_norm=40.0))
    found = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig())
    assert (found.max_norm, found.left_out) == (40.0, 0)
    found = evaluate(open_sae(tmp_path / "sae"), tmp_path / "y.npy", EvaluateConfig(max_norm=20.0))
    assert (found.max_norm, found.left_out) == (20.0, massive.sum())
    made = calibrate_bundle(tmp_path / "sae", open_activations(tmp_path / "y.npy"), out=tmp_path / "out")
    assert made.left_out.norm_multiple == 40.0 and sum(made.left_out.rows.values()) == 0


def test_calibration_beside_massive_rows_is_the_one_without_them(tmp_path: Path) -> None:
    x = rows()
    y, massive = with_massive(x, 500.0)
    fit(x, tmp_path / "sae", config())
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    alone, beside = (
        calibrate_bundle(tmp_path / "sae", open_activations(tmp_path / f"{name}.npy"), k=2.0, out=tmp_path / name)
        for name in ("x", "y")
    )
    assert weights(tmp_path / "x") == weights(tmp_path / "y") and alone.measured == beside.measured
    assert sum(beside.left_out.rows.values()) == massive.sum()
    measuring = np.flatnonzero(~massive)[-len(x) // 4 :]
    fvu, l0, _ = figures(tmp_path / "y", y[measuring])
    assert beside.measured["fvu"] == pytest.approx(fvu, rel=1e-5) and beside.measured["l0"] == pytest.approx(l0)
    last = np.flatnonzero(~massive)[: len(x) - len(x) // 4][-1]
    fvu, l0, seen = figures(tmp_path / "y", y[last + 1 :])
    found = beside.measured_with_left_out
    assert found["tokens"] == len(y) - last - 1
    assert found["fvu"] == pytest.approx(fvu, rel=1e-3) and found["l0"] == pytest.approx(l0)
    manifest = bundle.read(tmp_path / "y").manifest
    assert manifest.measured_with_left_out == found and manifest.left_out == beside.left_out


def test_a_served_bundle_encodes_massive_rows_as_any_other(tmp_path: Path) -> None:
    y, massive = with_massive(rows(), 300.0)
    manifest = fit(y, tmp_path / "sae", config())
    export(tmp_path / "sae")
    found = load(tmp_path / "sae").encode(y[massive])
    _, _, kept = figures(tmp_path / "sae", y[massive])
    assert kept.sum(axis=1).max() > manifest.slots, "such rows overflow the slots"
    dense = found.to_dense() > 0
    assert (dense != kept).mean() < 1e-3, "only values on the threshold may differ"


def sinking_model(folder: Path) -> Path:
    """A GPT-2 whose token w3 has a massive embedding."""
    from transformers import GPT2LMHeadModel

    save_gpt2(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wte.weight[3] *= 1000
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    text = write_words(tmp_path_factory.mktemp("text") / "words.txt", 120)
    model = str(sinking_model(tmp_path_factory.mktemp("gpt2")))
    sizes: dict[str, Any] = {"context": 20, "batch_tokens": 200, "document": "paragraph"}
    return HarvestConfig(model=model, hook="h.0", text=(text,), name="tiny", **sizes)


def massive_of(acts: Activations) -> NDArray[np.bool_]:
    size = np.linalg.norm(acts.slice(0, len(acts)).astype(np.float64), axis=1)
    return np.asarray(size > 10 * np.median(size))


def test_a_stream_leaves_out_the_rows_that_stored_activations_do(
    reading: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = harvest(reading, tmp_path / "acts")
    massive = massive_of(acts)
    assert acts.tokens is not None and np.array_equal(massive, acts.tokens == 3) and 0 < massive.sum()
    source = StreamedRows(reading, 0.3, 0, 2**20, 10.0)
    parts = source.held_out()  # the limit is not known yet
    train, _ = source.take(np.arange(source.units), lambda _: None)
    counts = {name: len(part) - source.left_out_of(name) for name, part in zip(("a", "b"), parts, strict=True)}
    assert len(train) + sum(map(len, parts)) + source.provenance["rows"]["gaps"] <= len(acts)
    bound = 10 * np.median(np.linalg.norm(acts.slice(0, len(acts)), axis=1))
    assert np.linalg.norm(train, axis=1).max() < bound and len(counts) == 2
    for name, part in zip(("calibration", "validation"), parts, strict=True):
        over = np.linalg.norm(part, axis=1) > bound
        assert over.sum() == source.left_out_of(name) > 0
        assert over[-over.sum() :].all() and source.provenance["rows"][name] == (~over).sum()


def test_a_fit_on_a_model_says_what_it_left_out(reading: HarvestConfig, tmp_path: Path) -> None:
    settings = {"d_sae": 32, "tokens": 640, "batch": 64, "holdout": 0.3}
    manifest: Manifest = fit(replace(reading, skip_first=1), tmp_path / "sae", config(**settings))
    rule = manifest.left_out
    assert rule is not None and rule.first_positions == 1 and rule.norm_multiple == 10.0
    assert rule.rows.keys() == {"sample", "calibration", "validation"} and min(rule.rows.values()) > 0
    assert manifest.measured_with_left_out["tokens"] == manifest.measured["tokens"] + rule.rows["validation"]
    by_id = fit(replace(reading, skip_token=("w3",)), tmp_path / "by-id", config(**settings))
    assert by_id.left_out is not None and by_id.left_out.token_ids == (3,)
    assert set(by_id.left_out.rows.values()) == {0} and by_id.measured_with_left_out == {}


def test_a_fit_on_a_harvest_carries_what_the_harvest_left_out(reading: HarvestConfig, tmp_path: Path) -> None:
    harvest(replace(reading, skip_first=2, skip_token=("3", "w5")), tmp_path / "acts")
    manifest = fit(tmp_path / "acts", tmp_path / "sae", config(tokens=640, batch=64, holdout=0.3))
    rule = manifest.left_out
    assert rule is not None and (rule.first_positions, rule.token_ids) == (2, (3, 5))
