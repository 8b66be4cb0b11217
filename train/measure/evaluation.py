"""The evaluation of a bundle on activations: what its rules achieve, how its features share the work, its decoder."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sae_runtime.activations.stored import Activations, check_source, open_activations
from sae_runtime.bundle import quota
from sae_runtime.bundle.evaluation_file import Evaluation, RuleEvaluation, Zipf, law_by_rank
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.train.device import memory_errors
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.provenance import trained_batch, trained_tokens, validation_rows, was_trained_on
from sae_runtime.train.measure.redundancy import redundancy
from sae_runtime.train.measure.rules import Rule, even_batch, shuffled
from sae_runtime.train.measure.tally import Tally, tally
from sae_runtime.train.measure.torch_sae import TorchSAE
from sae_runtime.train.recipe import GAMMA

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TILE_ELEMENTS = 1 << 25  # pre-activations that are held at once, where tokens are decided for themselves
_ROWS_AT_ONCE = 1 << 16


@memory_errors()
def evaluate(
    sae: TorchSAE,
    activations: Activations | str | Path,
    config: EvaluateConfig,
    *,
    targets: Activations | str | Path | None = None,
    any_source: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate an SAE by each of its rules.

    Args:
        sae: from `open_sae`.
        activations: a path that `open_activations` takes, or what it gives.
        config: which rows, and how many at once; its device is that of `sae`.
        targets: of a transcoder, what it reconstructs, row by row; without it there is no FVU.
        any_source: go on where the activations come from another model or hook than the bundle's.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ValueError: the activations or targets are of another width or source, too few, equal or not finite, or their
            held-out rows are asked for and cannot be told.
        MemoryError: a batch does not fit on the device.

    >>> from sae_runtime.train.measure.torch_sae import open_sae
    >>> evaluate(open_sae(bundle_path), activations_path, EvaluateConfig(tokens=100)).tokens
    100
    """
    source = activations if isinstance(activations, Activations) else open_activations(activations)
    manifest = sae.manifest
    check_source(source, manifest, any_source=any_source)
    kind, rows = chosen_rows(manifest, source, config)
    reader = _Reader(source, _targets(sae, source, targets), rows, sae.W_dec.device)
    batch = even_batch(len(rows), config.batch or trained_batch(manifest))
    tile = min(max(_TILE_ELEMENTS // manifest.architecture.d_sae, 1), _ROWS_AT_ONCE)
    by_batch = None
    total = len(rows) * (1 + (sae.batch is not None))
    # disable=None hides the bar where stderr is no terminal.
    with tqdm(total=total, unit="tok", unit_scale=True, disable=None if progress else True) as bar:
        served = _by_rule(sae, sae.served, reader.parts(rows, tile, bar), reader, None)
        if sae.batch is not None:
            mixed = rows[shuffled(len(rows))]
            by_batch = _by_rule(sae, sae.batch, reader.parts(mixed, batch, bar), reader, batch)
    return Evaluation(
        bundle=str(sae.path),
        name=sae.path.resolve().name,
        architecture=manifest.architecture,
        allocation=manifest.allocation,
        model=manifest.model,
        hook=manifest.hook,
        trained_tokens=trained_tokens(manifest),
        activations=source.path.name,
        rows=kind,
        tokens=len(rows),
        served=served,
        batch=by_batch,
        decoder=redundancy(sae.W_dec),
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


def _targets(sae: TorchSAE, source: Activations, targets: Activations | str | Path | None) -> Activations | None:
    """What the SAE is to reconstruct: the activations themselves, or a transcoder's targets where they are given."""
    width = sae.manifest.architecture.d_out
    if targets is None:
        return source if width is None else None
    opened = targets if isinstance(targets, Activations) else open_activations(targets)
    if width is None:
        raise ValueError(f"{sae.path} is no transcoder and reconstructs the activations themselves; give no targets")
    if (opened.d_in, len(opened)) != (width, len(source)):
        raise ValueError(
            f"the targets {opened.path} are [{len(opened)}, {opened.d_in}], expected [{len(source)}, {width}], a row "
            "for each row of the activations; harvest both from the same text"
        )
    return opened


class _Reader:
    """Rows of activations and of what an SAE is to reconstruct, on a device."""

    def __init__(
        self, source: Activations, targets: Activations | None, rows: NDArray[np.int64], device: torch.device
    ) -> None:
        self.source, self.targets, self.device = source, targets, device
        self.mean = None if targets is None else torch.from_numpy(_mean(targets, rows)).to(device)

    def parts(self, rows: NDArray[np.int64], size: int, bar: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            x = torch.from_numpy(self.source.rows(part)).to(self.device)
            if self.targets is None or self.targets is self.source:
                yield x, None if self.targets is None else x
            else:
                yield x, torch.from_numpy(self.targets.rows(part)).to(self.device)
            bar.update(len(part))


def _by_rule(
    sae: TorchSAE, rule: Rule, parts: Iterator[tuple[Tensor, Tensor | None]], reader: _Reader, batch: int | None
) -> RuleEvaluation:
    counted = tally(sae, parts, rule, reader.mean)
    if reader.mean is not None and reader.targets is not None:
        path = reader.targets.path
        if counted.spread.mean() <= 1e-12 * float(reader.mean.double().pow(2).sum()):  # no more than rounding
            raise ValueError(f"{path}: all rows are equal, there is nothing to explain; harvest more text")
        if not math.isfinite(counted.fvu):
            raise ValueError(f"{path}: activations so large that features overflow float32; drop those rows")
    return _evaluation(counted, batch)


def _evaluation(counted: Tally, batch: int | None) -> RuleEvaluation:
    density = counted.matches / len(counted.l0)
    try:
        law = Zipf(**dict(zip(("exponent", "offset", "r_squared"), quota.fit(density), strict=True)))
        expected = law_by_rank(law, density)
    except ValueError:  # too few features are active for a law, so that only dead ones are under-used
        law, expected = None, np.zeros_like(density)
    falling = np.sort(density)[::-1]
    known = len(counted.error) > 0
    return RuleEvaluation(
        batch=batch,
        fvu=counted.fvu if known else None,
        explained_variance=1 - counted.fvu if known else None,
        token_fvu=_quantiles(counted.error / np.maximum(counted.spread, 1e-300)) if known else None,
        l0=float(counted.l0.mean()),
        l0_quantiles=_quantiles(counted.l0),
        l0_tokens=tuple(np.bincount(counted.l0).tolist()),
        dead=float((counted.matches == 0).mean()),
        under_used=float(((falling < GAMMA * expected) | (falling == 0)).mean()),
        zipf=law,
        matches=tuple(counted.matches.tolist()),
    )


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    return {f"{level:g}": float(np.quantile(values, level)) for level in _QUANTILES}


def _mean(activations: Activations, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    total = np.zeros(activations.d_in)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        total += activations.rows(rows[begin : begin + _ROWS_AT_ONCE]).sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
