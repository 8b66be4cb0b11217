"""The evaluation of a bundle on activations: the figures of its rules, the use of its features, and its decoder."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.activations.left_out import kept_rows, rule_for, warn_of_many
from sae_runtime.activations.stored import Activations, check_source, open_activations
from sae_runtime.bundle import quota
from sae_runtime.bundle.evaluation_file import AllRows, Evaluation, RuleEvaluation, Zipf, law_by_rank
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.printable import printable
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import memory_errors
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.provenance import trained_batch, trained_tokens, validation_rows, was_trained_on
from sae_runtime.train.measure.redundancy import redundancy
from sae_runtime.train.measure.rules import Rule, even_batch, shuffled
from sae_runtime.train.measure.tally import Tally, has_no_variance, tally
from sae_runtime.train.measure.torch_sae import TorchSAE
from sae_runtime.train.recipe import GAMMA

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TILE_ELEMENTS = 1 << 25  # pre-activations that the served rule holds at once
_ROWS_AT_ONCE = 1 << 16
_OVERFLOW = "{}: activations so large that features overflow float32; drop those rows"


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

    Rows of massive norm are left out. If there are some, the main figures are also given over all rows.

    Args:
        sae: from `open_sae`.
        activations: a path that `open_activations` takes, or its result.
        config: which rows, and how many of them share their matches; its device has no effect, `sae` has one.
        targets: the activations that a transcoder reconstructs, row by row; without them it has no FVU.
        any_source: allow activations from another model or hook than the bundle's.
        progress: show the progress on stderr.

    Raises:
        ValueError: the activations or targets have another d_in, d_out or source, are too few, equal or not finite, or
            their held-out rows are asked for and not known.
        MemoryError: a batch does not fit on the device.

    >>> from sae_runtime.train.measure.torch_sae import open_sae
    >>> evaluate(open_sae(bundle_path), activations_path, EvaluateConfig(tokens=100)).tokens
    100
    """
    source = activations if isinstance(activations, Activations) else open_activations(activations)
    manifest = sae.manifest
    check_source(source, manifest, any_source=any_source)
    goals = _targets(sae, source, targets)
    max_norm = rule_for(manifest, config.max_norm)
    kept = kept_rows(source, max_norm, progress=progress)
    if goals is not None and goals is not source:  # a transcoder's FVU is about these
        kept &= kept_rows(goals, max_norm, progress=progress)
    warn_of_many(float((~kept).mean()), max_norm, source.path)
    kind, rows = chosen_rows(manifest, source, config)
    ordinary = rows[kept[rows]]
    if len(ordinary) < 2:
        raise ValueError(
            f"{source.path}: of {len(rows)} rows {len(rows) - len(ordinary)} are left out for their norm, a variance "
            "needs at least two; give more rows or another --max-norm"
        )
    served, by_batch = _by_rules(sae, source, goals, (ordinary, rows), config, progress)
    return Evaluation(
        bundle=printable(sae.path),  # names of files need not be UTF-8, and JSON is
        name=printable(sae.path.resolve().name),
        architecture=manifest.architecture,
        allocation=manifest.allocation,
        model=manifest.model,
        hook=manifest.hook,
        trained_tokens=trained_tokens(manifest),
        activations=printable(source.path.name),
        rows=kind,
        tokens=len(ordinary),
        served=served,
        batch=by_batch,
        decoder=redundancy(sae.W_dec),
        max_norm=max_norm,
        left_out=len(rows) - len(ordinary),
    )


def _by_rules(
    sae: TorchSAE,
    source: Activations,
    targets: Activations | None,
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    config: EvaluateConfig,
    progress: bool,
) -> tuple[RuleEvaluation, RuleEvaluation | None]:
    """The figures of the served rule and of the batch rule, if the SAE has one.

    `rows` are those that are not left out, and all. Where they differ, each rule also runs over all.
    """
    device = sae.W_dec.device
    tile = min(max(_TILE_ELEMENTS // sae.manifest.architecture.d_sae, 1), _ROWS_AT_ONCE)
    sets = rows if len(rows[0]) < len(rows[1]) else rows[:1]
    means = [None if targets is None else torch.from_numpy(_mean(targets, part)).to(device) for part in sets]
    total = sum(map(len, sets)) * (1 + (sae.batch is not None))
    with progress_bar(total, "tokens", shown=progress) as bar:

        def tallied(rule: Rule, number: int, size: int | None) -> Tally:
            order, mean = sets[number], means[number]
            if size is not None:
                order = order[shuffled(len(order))]
            step = size or tile
            parts = (order[begin : begin + step] for begin in range(0, len(order), step))
            return tally(sae, _read(source, targets, parts, device, bar), rule, mean)

        def by_rule(rule: Rule, sizes: list[int | None]) -> RuleEvaluation:
            counted = tallied(rule, 0, sizes[0])
            if targets is not None and means[0] is not None:
                _check_variance(counted, means[0], targets.path)
            if not np.isfinite(counted.largest).all():
                raise ValueError(_OVERFLOW.format(source.path))
            ordinary = _evaluation(counted, sizes[0])
            if len(sets) == 1:
                return ordinary
            return replace(ordinary, with_left_out=_all_rows(tallied(rule, 1, sizes[1])))

        served = by_rule(sae.served, [None for _ in sets])
        if sae.batch is None:
            return served, None
        wanted = config.batch or trained_batch(sae.manifest)
        return served, by_rule(sae.batch, [even_batch(len(part), wanted) for part in sets])


def chosen_rows(manifest: Manifest, activations: Activations, config: EvaluateConfig) -> tuple[str, NDArray[np.int64]]:
    """The rows to evaluate on: "held-out" or "all", and their numbers, ascending. Massive rows are among them.

    The held-out rows are those that training measured on. They are chosen if these are the activations of the
    training. If the config asks for them, it is enough that the parts of the split have the sizes of the training's.

    Raises:
        ValueError: there are fewer than two rows, or held-out rows are asked for and these are not the activations
            that the SAE was trained on.

    >>> from sae_runtime.train.measure.torch_sae import open_sae
    >>> chosen_rows(open_sae(bundle_path).manifest, open_activations(activations_path), EvaluateConfig(tokens=3))
    ('all', array([306, 381, 508]))
    """
    held_out = None
    if config.rows == "held-out" or (config.rows == "auto" and was_trained_on(manifest, activations)):
        held_out = validation_rows(manifest, activations)
    if config.rows == "held-out" and held_out is None:
        raise ValueError(
            f"{activations.path} has other rows than this SAE's training, so its held-out rows are not known; give the "
            "activations of its training, or --rows all"
        )
    kind, rows = ("all", np.arange(len(activations))) if held_out is None else ("held-out", held_out)
    if len(rows) < 2:
        raise ValueError(f"{activations.path} has {len(rows)} rows, a variance needs at least two; give more rows")
    if config.tokens is not None and config.tokens < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, config.tokens, replace=False))
    return kind, rows


def _targets(sae: TorchSAE, source: Activations, targets: Activations | str | Path | None) -> Activations | None:
    """The activations that the SAE reconstructs: its own input, or a transcoder's targets, if they are given."""
    d_out = sae.manifest.architecture.d_out
    if targets is None:
        return source if d_out is None else None
    opened = targets if isinstance(targets, Activations) else open_activations(targets)
    if d_out is None:
        raise ValueError(f"{sae.path} is no transcoder and reconstructs the activations themselves; give no targets")
    if (opened.d_in, len(opened)) != (d_out, len(source)):
        raise ValueError(
            f"the targets {opened.path} are [{len(opened)}, {opened.d_in}], expected [{len(source)}, {d_out}], a row "
            "for each row of the activations; harvest both from the same text"
        )
    return opened


def _read(
    source: Activations,
    targets: Activations | None,
    parts: Iterable[NDArray[np.int64]],
    device: torch.device,
    bar: Any,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Parts of the rows of the activations and of their targets, on a device."""
    for part in parts:
        x = torch.from_numpy(source.rows(part)).to(device)
        if targets is None or targets is source:
            yield x, None if targets is None else x
        else:
            yield x, torch.from_numpy(targets.rows(part)).to(device)
        bar.update(len(part))


def _check_variance(counted: Tally, mean: Tensor, path: Path) -> None:
    if has_no_variance(counted, mean):
        raise ValueError(f"{path}: all rows are equal, there is nothing to explain; harvest more text")
    if not math.isfinite(counted.fvu):
        raise ValueError(_OVERFLOW.format(path))


def _evaluation(counted: Tally, batch: int | None) -> RuleEvaluation:
    density = counted.matches / len(counted.l0)
    try:
        law = Zipf(**dict(zip(("exponent", "offset", "r_squared"), quota.fit(density), strict=True)))
        expected = law_by_rank(law, density)
    except ValueError:  # too few features are active for a law, so only dead features count as under-used
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
        largest=tuple(counted.largest.tolist()),
    )


def _all_rows(counted: Tally) -> AllRows:
    fvu = counted.fvu if math.isfinite(counted.fvu) else None
    return AllRows(
        tokens=len(counted.l0),
        fvu=fvu,
        explained_variance=None if fvu is None else 1 - fvu,
        l0=float(counted.l0.mean()),
        dead=float((counted.matches == 0).mean()),
    )


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    return {f"{level:g}": float(np.quantile(values, level)) for level in _QUANTILES}


def _mean(activations: Activations, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    total = np.zeros(activations.d_in)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        total += activations.rows(rows[begin : begin + _ROWS_AT_ONCE]).sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
