"""Stored activations divided into parts: the rows that a run works on, and those of massive norm that it leaves out."""

from dataclasses import dataclass

import numpy as np

from sae_runtime.activations.left_out import kept_rows, shared_out
from sae_runtime.activations.stored import Activations
from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.train.harvest.config import as_harvested
from sae_runtime.train.held_out import Split, split


@dataclass(frozen=True)
class LeftOutRows:
    """The rows that are left out, by the part to which their neighbours belong, and the rule that leaves them out."""

    rows: Split
    rule: LeftOut
    share: float  # of all rows


def divided(
    activations: Activations, holdout: float, seed: int, max_norm: float | None, *, progress: bool = False
) -> tuple[Split, LeftOutRows]:
    """Leave out rows of massive norm and split the others.

    Args:
        activations: the rows; with a limit all are read once.
        holdout: as for `split`.
        seed: as for `split`.
        max_norm: rows are left out if their norm exceeds this multiple of the median norm; None for no limit.
        progress: show the progress on stderr.

    Raises:
        ValueError: as `split`, or a row holds NaN or Inf.

    >>> from sae_runtime.activations.stored import open_activations
    >>> parts, left_out = divided(open_activations(activations_path), 0.1, seed=0, max_norm=10.0)
    >>> len(parts.train), left_out.rule.rows
    (540, {'train': 0, 'calibration': 0, 'validation': 0})
    """
    kept = kept_rows(activations, max_norm, progress=progress)
    parts = split(activations, holdout, seed, rows=None if kept.all() else np.flatnonzero(kept))
    names = ("train", "calibration", "validation")
    kept_parts = [getattr(parts, name) for name in names]
    train, calibration, validation = shared_out(kept, kept_parts, activations.documents)
    left_out = Split(train, calibration, validation)
    harvested = as_harvested(activations.path)
    rule = LeftOut(
        norm_multiple=max_norm,
        first_positions=harvested.get("skip_first", 0),
        token_ids=tuple(map(int, harvested.get("skip_token", ()))),
        rows={name: len(getattr(left_out, name)) for name in names},
    )
    return parts, LeftOutRows(left_out, rule, float((~kept).mean()))
