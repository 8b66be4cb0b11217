"""What live traffic shows of an SAE, beside the figures of its manifest, so that drift is seen."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.bundle.stats import Stats
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features, from_slots
from sae_runtime.deployed.spliced_sae import SplicedSAE
from sae_runtime.sae import SAE
from sae_runtime.serve.edit_kinds import kind_of, strength_of
from sae_runtime.serve.figures import Figures, Totals, expected_features, expected_figures

WINDOW = 50_000  # tokens; what is recent are the last one to two windows
SAMPLE, PAUSE = 16, 0.25  # rows of a sample, and the least seconds between two

Rebuild = Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class _Counted:
    """Sums over a window of tokens."""

    d_sae: int
    tokens: int = 0
    matches: int = 0
    saturated: int = 0
    sampled: int = 0
    error: float = 0.0  # of |x - x_hat|^2
    square: float = 0.0  # of |x - shift|^2
    total: Any = 0.0  # of x - shift, [d]
    seen: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = np.zeros(self.d_sae, bool)


class Watched:
    """Counts what an SAE gives for live traffic. Threads may share it; a call of one row takes some 10 us.

    Args:
        d_sae: number of features.
        manifest: of the bundle, for the figures to compare with; None: there are none.
        stats: of the bundle; None: silent features are not known.
        slots: that fill before a token is encoded again; None: no token is, as by top k.
        rebuild: gives x_hat of indices, values and x; None: the explained variance is not known.
        redone: gives the number of redone tokens since the start.
        now: seconds that only grow.

    >>> watched = Watched(8)
    >>> watched.saw(np.array([[1, 4], [2, 0]]), np.array([[3, 2], [1, 0]], np.float32))
    >>> watched.recent().l0
    1.5
    """

    def __init__(
        self,
        d_sae: int,
        manifest: Manifest | None = None,
        stats: Stats | None = None,
        *,
        slots: int | None = None,
        rebuild: Rebuild | None = None,
        redone: Callable[[], int] = int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.d_sae, self._stats, self._slots, self._rebuild, self._now = d_sae, stats, slots, rebuild, now
        self._redone = redone
        self._expected = expected_figures(manifest, stats)
        self._lock = threading.Lock()
        self._old, self._new, self._all = _Counted(d_sae), _Counted(d_sae), _Counted(0)
        self._shift: NDArray[np.float64] | None = None  # near the mean, so that squares lose nothing
        self._next = -math.inf
        self._edits, self._largest = 0, [0.0, 0.0, 0.0]

    def saw(
        self, indices: NDArray[np.int64], values: NDArray[np.float32], x: NDArray[np.float32] | None = None
    ) -> None:
        """Count rows that were encoded as the bundle says, without options of the caller.

        Args:
            indices: [n, w].
            values: [n, w]; 0 where a slot is not used.
            x: the activations, [n, d_in]; None where they are not at hand.
        """
        used, full = values > 0, 0
        if self._slots is not None and values.shape[1] >= self._slots:  # else no row can be full
            full = int(np.count_nonzero(np.count_nonzero(used, axis=1) >= self._slots))
        self._count(len(values), indices[used], full)
        if x is not None and self._rebuild is not None and len(x) and self._now() >= self._next:
            self._measure(indices, values, x, self._rebuild)

    def saw_features(self, features: Features, own: NDArray[np.bool_] | None = None) -> None:
        """Count the tokens of a text.

        Args:
            features: of its tokens.
            own: whether a token is the text's own and no special one, [t]; None: all are. Training leaves special
                tokens out, and so do its figures.
        """
        counts, indices = np.diff(features.indptr), features.indices
        if own is not None:
            counts, indices = counts[own], indices[np.repeat(own, counts)]
        full = 0 if self._slots is None else int(np.count_nonzero(counts >= self._slots))
        self._count(len(counts), indices, full)

    def edited(self, edits: Sequence[Edit]) -> None:
        """Note the edits of a request that was accepted, in numbers; those that change nothing do not count."""
        edits = [edit for edit in edits if kind_of(edit) != "none" and 0 <= int(edit.feature) < self.d_sae]
        if not edits:
            return
        strengths = [strength_of(edit) for edit in edits]
        multiples = [0.0]
        if self._stats is not None:
            units = [float(self._stats.largest[int(edit.feature)]) for edit in edits]
            multiples += [strength / unit for strength, unit in zip(strengths, units, strict=True) if unit > 0]
        found = max(strengths), max(multiples), max(abs(edit.factor) for edit in edits)
        with self._lock:
            self._edits += len(edits)
            self._largest = list(map(max, self._largest, found))

    def expected(self) -> Figures:
        """The figures of the manifest."""
        return self._expected

    def recent(self) -> Figures:
        """The figures of the last tokens, of one to two windows."""
        with self._lock:
            old, new = self._old, self._new
            tokens, matches = old.tokens + new.tokens, old.matches + new.matches
            saturated = old.saturated + new.saturated
            sampled, error = old.sampled + new.sampled, old.error + new.error
            total, square = np.asarray(old.total + new.total), old.square + new.square
            seen = old.seen | new.seen
        if not tokens:
            return Figures()
        spread = square - float((total**2).sum()) / max(sampled, 1)
        return Figures(
            tokens=tokens,
            l0=matches / tokens,
            explained_variance=1 - error / spread if sampled > 1 and spread > 1e-9 * square else None,
            saturated=None if self._slots is None else saturated / tokens,
            silent=None if self._stats is None else int((expected_features(self._stats, tokens) & ~seen).sum()),
        )

    def totals(self) -> Totals:
        """What only grows since the start."""
        with self._lock:
            every, (edit, multiple, factor) = self._all, self._largest
            return Totals(
                tokens=every.tokens,
                matches=every.matches,
                saturated=every.saturated,
                redone=self._redone(),
                sampled=every.sampled,
                edits=self._edits,
                largest_edit=edit,
                largest_multiple=multiple,
                largest_factor=factor,
            )

    def _count(self, tokens: int, indices: NDArray[Any], saturated: int) -> None:
        with self._lock:
            if self._new.tokens >= WINDOW:
                self._old, self._new = self._new, _Counted(self.d_sae)
            self._new.seen[indices] = True
            for sums in (self._new, self._all):
                sums.tokens += tokens
                sums.matches += len(indices)
                sums.saturated += saturated

    def _measure(
        self, indices: NDArray[np.int64], values: NDArray[np.float32], x: NDArray[np.float32], rebuild: Rebuild
    ) -> None:
        """Add a few rows of a request to the explained variance; they are spread over it."""
        begun = self._now()
        rows = np.unique(np.linspace(0, len(x) - 1, min(SAMPLE, len(x))).astype(np.int64))
        own = np.ascontiguousarray(x[rows])
        self._next = begun + PAUSE
        try:
            x_hat = rebuild(np.ascontiguousarray(indices[rows]), np.ascontiguousarray(values[rows]), own)
        except ValueError:  # a reconstruction may overflow, and the caller's features are sound all the same
            return
        wide = own.astype(np.float64)
        error = float(((wide - x_hat) ** 2).sum())
        with self._lock:
            if self._shift is None:
                self._shift = wide.mean(axis=0)
            moved = wide - self._shift
            self._new.error += error
            self._new.square += float((moved**2).sum())
            self._new.total = self._new.total + moved.sum(axis=0)
            self._new.sampled += len(rows)
            self._all.sampled += len(rows)


def watch_bundle(sae: SAE) -> Watched:
    """Watch a bundle, whose callers send activations. A transcoder rebuilds others, so its variance is not known.

    >>> watch_bundle(sae).expected().l0 == sae.manifest.measured.get("l0")
    True
    """
    architecture = sae.manifest.architecture

    def rebuild(indices: NDArray[np.int64], values: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
        return sae.decode(from_slots([(indices, values)], sae.d_sae, (len(x),)), x)

    return Watched(
        sae.d_sae,
        sae.manifest,
        sae.stats,
        slots=None if architecture.k is not None else sae.manifest.slots,
        rebuild=rebuild if architecture.d_out is None else None,
        redone=lambda: sae.redone[0],
    )


def watch_splice(sae: SplicedSAE) -> Watched:
    """Watch an SAE in a deployed model, whose activations stay in the graph: the variance is not known.

    >>> from sae_runtime import load_model
    >>> watch_splice(load_model(model_path).saes["sae"]).recent().tokens
    0
    """
    known = sae.bundle is not None
    manifest = None if sae.bundle is None else read_manifest(sae.bundle)
    return Watched(sae.d_sae, manifest, sae.stats if known else None, slots=sae.slots if sae.by_threshold else None)
