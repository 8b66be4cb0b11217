"""The evaluation of a bundle on activations: what its rules achieve, how its features share the work, its decoder."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sae_runtime import quota
from sae_runtime.activations import Activations, check_source, open_activations
from sae_runtime.manifest import Manifest
from sae_runtime.train.config import option
from sae_runtime.train.density import expected_density
from sae_runtime.train.device import memory_errors
from sae_runtime.train.evaluate import Tally, shuffled, tally
from sae_runtime.train.fitted import Fitted
from sae_runtime.train.losses import under_used
from sae_runtime.train.provenance import trained_batch, validation_rows, was_trained_on
from sae_runtime.train.recipe import GAMMA
from sae_runtime.train.redundancy import Redundancy, redundancy

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TILE_ELEMENTS = 1 << 25  # of latents, where tokens are decided for themselves
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which rows to evaluate on, and how many share a budget.

    Raises:
        ValueError: a value is out of its range.
    """

    rows: str = option(
        "auto",
        "held-out: those that training measured on; all; auto: held-out where these activations were trained on",
        choices=("auto", "held-out", "all"),
    )
    tokens: int | None = option(None, "rows to evaluate on at most, drawn at random")
    batch: int | None = option(None, "tokens that share a budget under the batch rule [as in training, else 2048]")
    seed: int = option(0, "of the draw of --tokens rows")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        if self.rows not in ("auto", "held-out", "all"):
            raise ValueError(f"rows must be auto, held-out or all, got {self.rows!r}")
        for name in ("tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, since a single token has no variance, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Zipf:
    """The Zipf-Mandelbrot law fitted to the densities, by `quota.fit`."""

    exponent: float
    offset: float
    r_squared: float


@dataclass(frozen=True, kw_only=True)
class RuleEvaluation:
    """What one rule achieves. Quantiles are over tokens, by their level as text, such as "0.05"."""

    batch: int | None  # tokens that share a budget; None: every token for itself
    fvu: float
    token_fvu: Mapping[str, float]  # quantiles of |x - x_hat|^2 / |x - mean|^2 of a token
    l0: float  # mean
    l0_quantiles: Mapping[str, float]
    l0_tokens: tuple[int, ...]  # how many tokens have 0, 1, 2, ... active features
    dead: float  # share of the features that never fire on these tokens
    under_used: float  # share that fires less than a tenth as often as the law gives its rank, dead ones included
    zipf: Zipf | None  # None where fewer than 20 features fire
    matches: tuple[int, ...]  # tokens on which each feature fires


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an SAE achieves on activations, and how much its decoder repeats itself."""

    activations: str
    rows: str  # "held-out", never trained on, or "all"
    tokens: int
    served: RuleEvaluation
    batch: RuleEvaluation | None  # by the batch rule; None for token choice, whose two rules are one
    decoder: Redundancy


@memory_errors()
def evaluate(
    fitted: Fitted,
    activations: Activations | str | Path,
    config: EvaluateConfig,
    *,
    any_source: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate an SAE by each of its rules.

    Args:
        fitted: from `open_fitted`.
        activations: a path that `open_activations` takes, or what it gives.
        config: which rows, and how many at once; its device is that of `fitted`.
        any_source: go on where the activations come from another model or hook than the bundle's.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ValueError: the activations are of another width or source, too few, equal or not finite, or their held-out rows
            are asked for and cannot be told.
        MemoryError: a batch does not fit on the device.
    """
    source = activations if isinstance(activations, Activations) else open_activations(activations)
    check_source(source, fitted.manifest, any_source=any_source)
    kind, rows = chosen_rows(fitted.manifest, source, config)
    device = fitted.model.b_dec.device
    mean = torch.from_numpy(_mean(source, rows)).to(device)
    wanted = config.batch or trained_batch(fitted.manifest)
    # Batches of one size: over a short last one the caps of feature choice would round to nothing.
    batch = math.ceil(len(rows) / max(round(len(rows) / wanted), 1))
    tile = min(max(_TILE_ELEMENTS // len(fitted.model.b_enc), 1), _ROWS_AT_ONCE)
    results: list[RuleEvaluation | None] = []
    bar = tqdm(
        total=len(rows) * (1 + (fitted.batch is not None)),
        unit="tok",
        unit_scale=True,
        disable=None if progress else True,  # None hides it where stderr is no terminal
    )
    with bar:
        mixed = rows[shuffled(len(rows))]
        for rule, part, size, shared in ((fitted.served, rows, tile, None), (fitted.batch, mixed, batch, batch)):
            if rule is None:
                results.append(None)
                continue
            counted = tally(fitted.model, _read(source, part, size, device, bar), rule, mean)
            if counted.spread.mean() <= 1e-12 * float(mean.double().pow(2).sum()):  # no more than rounding
                raise ValueError(f"{source.path}: all rows are equal, there is nothing to explain; harvest more text")
            if not math.isfinite(counted.fvu):
                raise ValueError(f"{source.path}: activations so large that features overflow float32; drop those rows")
            results.append(_evaluation(counted, shared))
    assert results[0] is not None
    return Evaluation(
        activations=source.path.name,
        rows=kind,
        tokens=len(rows),
        served=results[0],
        batch=results[1],
        decoder=redundancy(fitted.model.W_dec.detach()),
    )


def chosen_rows(manifest: Manifest, activations: Activations, config: EvaluateConfig) -> tuple[str, NDArray[np.int64]]:
    """Whether the rows are "held-out" or "all", and their numbers, ascending.

    Those that training measured on, where these are the activations of the training, or where they are asked for and
    the sizes of all parts are the training's.

    Raises:
        ValueError: there are fewer than two rows, or held-out rows are asked for and these are not the activations
            that the SAE was trained on.
    """
    held_out = validation_rows(manifest, activations)
    if config.rows == "held-out" and held_out is None:
        raise ValueError(
            f"{activations.path} has other rows than what this SAE was trained on, so those that were held out are "
            "not known; give the activations of its training, or --rows all"
        )
    known = held_out is not None and config.rows == "auto" and was_trained_on(manifest, activations)
    if held_out is not None and (known or config.rows == "held-out"):
        kind, rows = "held-out", held_out
    else:
        kind, rows = "all", np.arange(len(activations))
    if len(rows) < 2:
        raise ValueError(f"{activations.path} has {len(rows)} rows, a variance needs two at least; give more")
    if config.tokens is not None and config.tokens < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.tokens, replace=False))
    return kind, rows


def _evaluation(counted: Tally, batch: int | None) -> RuleEvaluation:
    n = len(counted.l0)
    density = torch.from_numpy(counted.matches / n)
    try:
        law = Zipf(**dict(zip(("exponent", "offset", "r_squared"), quota.fit(density.numpy()), strict=True)))
    except ValueError:  # too few features fire
        law = None
    lacking = under_used(density, expected_density(density), density == 0, GAMMA)
    token_fvu = counted.error / np.maximum(counted.spread, 1e-300)
    return RuleEvaluation(
        batch=batch,
        fvu=counted.fvu,
        token_fvu=_quantiles(token_fvu),
        l0=float(counted.l0.mean()),
        l0_quantiles=_quantiles(counted.l0),
        l0_tokens=tuple(np.bincount(counted.l0).tolist()),
        dead=float((counted.matches == 0).mean()),
        under_used=float(lacking.double().mean()),
        zipf=law,
        matches=tuple(counted.matches.tolist()),
    )


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    return {f"{level:g}": float(np.quantile(values, level)) for level in _QUANTILES}


def _read(
    activations: Activations, rows: NDArray[np.int64], size: int, device: torch.device, bar: Any
) -> Iterator[Tensor]:
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        yield torch.from_numpy(activations.rows(part)).to(device)
        bar.update(len(part))


def _mean(activations: Activations, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    total = np.zeros(activations.d_in)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        total += activations.rows(rows[begin : begin + _ROWS_AT_ONCE]).sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
