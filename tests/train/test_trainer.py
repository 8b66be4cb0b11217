from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sae_runtime.bundle import quota
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.recipe import derive, schedule
from sae_runtime.train.step.allocation import allocate
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Losses, Step, plain_step
from sae_runtime.train.trainer import Trainer

Params = dict[str, NDArray[np.float64]]


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"d_sae": 40, "k": 4.0, "tokens": 6400, "batch": 64, **changes})


def trainer(chosen: TrainConfig, d_in: int = 10, seed: int = 0, gradients: Step | None = None) -> Trainer:
    model = SparseAutoencoder(
        derive(chosen, d_in).d_sae, torch.zeros(d_in), generator=torch.Generator().manual_seed(seed)
    )
    return Trainer(model, chosen, derive(chosen, d_in), rng=np.random.default_rng(seed), gradients=gradients)


def batch(step: int, d_in: int = 10, n: int = 64) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(100 + step))


def parameters(run: Trainer) -> Params:
    return {name: p.detach().double().numpy().copy() for name, p in run.model.named_parameters()}


def reference_step(p: Params, x: NDArray[np.float64], k: float, lr: float) -> Params:
    """The first step of mutual choice without auxiliary loss, derived by hand: gradients of the FVU, then Adam."""
    centred = x - p["b_dec"]
    z = np.maximum(centred @ p["W_enc"].T + p["b_enc"], 0)
    f = np.where(z >= np.sort(z.ravel())[-round(k * len(x))], z, 0)
    residual = x - (f @ p["W_dec"] + p["b_dec"])
    error = -2 * residual / ((x - x.mean(axis=0)) ** 2).sum()  # d loss / d x_hat
    back = (error @ p["W_dec"].T) * (f > 0)  # d loss / d z
    grads = {"W_dec": f.T @ error, "W_enc": back.T @ centred, "b_enc": back.sum(axis=0)}
    grads["b_dec"] = error.sum(axis=0) - (back @ p["W_enc"]).sum(axis=0)
    grads["W_dec"] -= (grads["W_dec"] * p["W_dec"]).sum(axis=1, keepdims=True) * p["W_dec"]
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    grads = {name: g / norm for name, g in grads.items()}
    # Adam's first step: the corrected moments are g and g^2.
    stepped = {name: p[name] - lr * g / (np.abs(g) + 1e-8) for name, g in grads.items()}
    stepped["W_dec"] /= np.linalg.norm(stepped["W_dec"], axis=1, keepdims=True)
    return stepped


def test_a_training_step_agrees_with_numpy() -> None:
    run = trainer(config(aux="none"))
    before, x = parameters(run), batch(0)
    stats = run.step(x)
    expected = reference_step(before, x.double().numpy(), 4.0, stats.lr)
    for name, after in parameters(run).items():
        moved = np.abs(expected[name] - before[name]).max()
        # Adam turns a gradient into its sign: where the gradient is rounding noise, float32 may differ.
        off = np.abs(after - expected[name]) > 1e-3 * moved
        assert off.mean() < 0.01, f"{name}: {off.sum()} of {off.size} entries differ"
    assert stats.l0 == 4.0


@pytest.mark.parametrize("allocation", ["token", "mutual", "feature"])
@pytest.mark.parametrize("aux", ["none", "dead", "zipf"])
def test_two_runs_with_one_seed_are_equal_bit_for_bit(allocation: str, aux: str) -> None:
    runs = [trainer(config(allocation=allocation, aux=aux, warmup_share=0.5)) for _ in range(2)]
    for run in runs:
        for step in range(60):
            run.step(batch(step))
    for first, second in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("allocation", ["token", "mutual", "feature"])
def test_sparse_and_plain_runs_stay_together(allocation: str) -> None:
    chosen = config(allocation=allocation, aux="zipf", warmup_share=0.5)
    runs = [trainer(chosen), trainer(chosen, gradients=plain_step)]
    stats = [[run.step(batch(step)) for step in range(20)] for run in runs]
    for sparse, plain in zip(*stats, strict=True):
        assert sparse.fvu == pytest.approx(plain.fvu, rel=1e-3) and sparse.l0 == plain.l0
        assert sparse.aux_trained == plain.aux_trained and sparse.under_used == plain.under_used


def test_decoder_rows_keep_unit_norm() -> None:
    run = trainer(config())
    for step in range(5):
        run.step(batch(step))
    assert (run.model.W_dec.norm(dim=1) - 1).abs().max() < 1e-6


def test_feature_choice_begins_by_ranking_features_by_density() -> None:
    run = trainer(config(allocation="feature", warmup_share=0.5))
    start = run.recipe.feature_start
    for step in range(start):
        run.step(batch(step))
    assert run.quota is None
    density, rows = run.tracker.density.clone(), run.model.W_enc.detach().clone()
    moments = run.optimizer.state[run.model.W_enc]["exp_avg"].clone()
    order = torch.argsort(density, descending=True, stable=True)
    run.begin_feature_choice()
    assert run.quota is not None and run.quota.slack == 3.0
    assert torch.equal(run.tracker.density, density[order])
    assert torch.equal(run.model.W_enc.detach(), rows[order])
    assert torch.equal(run.optimizer.state[run.model.W_enc]["exp_avg"], moments[order])


def test_feature_choice_holds_its_largest_densities_and_its_total() -> None:
    run = trainer(config(allocation="feature", exponent=0.5, offset=2.0, slack=1.0))
    run.step(batch(0))
    assert run.quota is not None
    max_density = quota.max_densities(run.quota, 4.0, 40)
    kept = allocate(run.model.pre_activations(batch(1)).detach(), **run.limits(64))
    assert (kept.sum(dim=0).numpy() <= np.ceil(max_density * 64)).all()
    assert kept.sum() <= 256


def test_loss_that_is_not_finite_stops_the_run_before_the_weights_change() -> None:
    run = trainer(config())
    run.step(batch(0))
    before = parameters(run)
    x = batch(1)
    x[3, 3] = torch.inf
    with pytest.raises(ValueError, match="not finite at step 1; look for extreme activations or batches of equal rows"):
        run.step(x)
    assert all((before[name] == after).all() for name, after in parameters(run).items())


def test_an_auxiliary_loss_that_is_not_finite_stops_the_run_too() -> None:
    def gradients(model: SparseAutoencoder, x: torch.Tensor, *args: Any, **settings: Any) -> Losses:
        return replace(plain_step(model, x, *args, **settings), aux=torch.tensor(torch.nan))

    run = trainer(config(), gradients=gradients)
    before = parameters(run)
    with pytest.raises(ValueError, match="the loss or its gradient is not finite at step 0"):
        run.step(batch(0))
    assert all((before[name] == after).all() for name, after in parameters(run).items())


def test_schedule_rises_stays_and_falls() -> None:
    recipe = derive(config(tokens=64 * 1000), 10)
    quotas = [schedule(recipe, step) for step in range(recipe.steps)]
    assert quotas[0] == 1 / recipe.warmup_steps and max(quotas) == 1.0 and 0 < quotas[-1] < 0.01
    assert np.diff(quotas).max() <= 1 / recipe.warmup_steps + 1e-12


def test_recipe_follows_from_the_config() -> None:
    short, long = derive(config(), 10), derive(config(tokens=64 * 100_000), 10)
    assert short.steps == 100 and short.lr > long.lr
    assert derive(config(lr=0.5), 10).lr == 0.5
    assert derive(config(aux="none"), 10).aux_weight == 0.0 < derive(config(), 10).aux_weight
    assert (derive(config(d_sae=None), 10).d_sae, derive(config(d_sae=None), 9).d_sae) == (80, 80)
    assert derive(config(allocation="feature", exponent=0.0), 10).feature_start == 0
    assert derive(config(allocation="feature"), 10).feature_start == 40
    # Feature choice begins before the run ends, or there would be no quota to save.
    assert derive(config(allocation="feature", warmup_share=0.999), 10).feature_start == 99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation": "both"}, "allocation must be one of token, mutual, feature, topk, batchtopk, got 'both'"),
        ({"k": 41.0}, r"k must be in \(0, d_sae=40\], got 41"),
        ({"k": 2.5, "allocation": "token"}, "same whole number of matches, got k=2.5"),
        ({"d_sae": 0}, "d_sae must be at least 1, got 0"),
        (
            {"d_sae": 19, "allocation": "feature"},
            "a Zipf fit needs at least 20 features, got d_sae=19: give an exponent",
        ),
        ({"batch": 1}, "batch must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"slack": float("nan")}, r"slack must be in \[1, 1e12\)"),
        ({"slack": float("inf")}, r"slack must be in \[1, 1e12\)"),
        ({"exponent": 1.0, "offset": float("inf")}, r"offset in \[0, 1e12\), got 1.0 and inf"),
        ({"tokens": 10}, r"tokens must be at least one batch \(64\)"),
        ({"holdout": 1.0}, r"holdout must be in \(0, 1\), got 1.0"),
        ({"slack": 0.5}, r"slack must be in \[1, 1e12\), at 1 every column is full, got 0.5"),
        ({"offset": 2.0}, "an offset belongs to an exponent, got offset=2.0 alone; give the exponent too"),
        ({"exponent": 70.0, "offset": 1.0}, r"exponent must be in \[0, 10\]"),
        ({"warmup_share": 1.0}, r"warmup_share must be in \[0, 1\)"),
        ({"warmup_share": 0.0, "allocation": "feature"}, "without warm-up there is nothing to fit"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"aux": "l1"}, "aux must be one of zipf, dead, none"),
    ],
)
def test_train_config_refuses_values_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("name", "ours"), [("topk", "token"), ("TopK", "token"), ("batchtopk", "mutual"), ("BatchTopK", "mutual")]
)
def test_config_accepts_the_allocation_names_of_other_libraries(name: str, ours: str) -> None:
    assert config(allocation=name).allocation == ours


def test_under_used_features_do_not_depend_on_the_auxiliary_loss() -> None:
    runs = [trainer(config(aux=aux, d_sae=200, tokens=64 * 1000)) for aux in ("zipf", "dead", "none")]
    runs = [Trainer(r.model, r.config, replace(r.recipe, dead_tokens=640), rng=np.random.default_rng(0)) for r in runs]
    for run in runs:
        x = batch(0) @ torch.diag(torch.tensor([10.0, 5.0, 2.0, *[0.1] * 7]))
        stats = [run.step(x.roll(step, dims=0)) for step in range(60)][-1]
        density = run.tracker.density
        dead = run.tracker.silent_tokens >= 640
        few = (density < 0.1 * run.expected) | dead
        assert stats.under_used == pytest.approx(few.double().mean().item()) and stats.dead <= stats.under_used
        trained = {"zipf": stats.under_used, "dead": stats.dead, "none": stats.dead}[run.config.aux]
        assert stats.aux_trained == pytest.approx(trained)
        assert stats.dead > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    runs = [trainer(config(allocation="feature", exponent=0.5, offset=2.0)) for _ in range(2)]
    runs[1] = Trainer(runs[1].model.cuda(), runs[1].config, runs[1].recipe, rng=np.random.default_rng(0))
    on_cpu, on_gpu = runs[0].step(batch(0)), runs[1].step(batch(0).cuda())
    assert on_gpu.fvu == pytest.approx(on_cpu.fvu, rel=1e-3) and on_gpu.l0 == pytest.approx(on_cpu.l0, rel=1e-2)
