"""The batch rule with the graphs of one bundle: its total matches and limits, and how its first pass encodes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import EXACT
from sae_runtime.bundle.manifest import Allocation, Manifest
from sae_runtime.core.arrays import as_array
from sae_runtime.core.features import Features, from_slots
from sae_runtime.core.slots import Slots
from sae_runtime.engine.batch_rule import encode_joint
from sae_runtime.engine.options import checked_k, served_feed
from sae_runtime.engine.rows import Rows
from sae_runtime.engine.tiler import Tiler

_FLOOR = 0.85  # of the served threshold; a batch whose cut is lower needs a second pass over its rows
_FREE = 1.5  # times the total matches: limits with this much room seldom bind
_SLOTS = 2  # times k: the least number of slots in the first pass


@dataclass(frozen=True)
class BatchEncoder:
    """How the rows of one batch are encoded for the batch rule.

    Attributes:
        tiler: encodes with the bundle's graphs.
        d_sae: number of features.
        total: M, the total matches of the batch.
        limit: m_i, the limit of each feature's matches, int64 [d_sae], for feature choice.
        floor: of the first pass; see `encode_joint`.
        slots: of a row in the first pass.
        plain: whether encode.onnx encodes.
    """

    tiler: Tiler
    d_sae: int
    total: int
    limit: NDArray[np.int64] | None
    floor: float
    slots: int
    plain: bool

    def encode(
        self, rows: Rows, tiles: Sequence[NDArray[np.int64]], bound: NDArray[np.float32], whole: bool
    ) -> Iterator[Slots]:
        """The slots of tiles of rows, as `Encode` of the batch rule gives them."""
        tiler, slots = self.tiler, min(4 * self.slots if whole else self.slots, self.d_sae)
        method = partial(tiler.all_slots, plain=True) if whole else tiler.plain if self.plain else tiler.slots
        return tiler.map(method, rows, tiles, {"threshold": bound, "slots": np.array([slots])})

    def tile(self, tokens: int) -> int:
        """Rows that are encoded at once, of so many."""
        return self.tiler.tile if self.plain else self.tiler.tile_for(tokens)


def batch_encoder(
    bundle: Bundle, tiler: Tiler, tokens: int, *, k: float | None = None, max_density: ArrayLike | None = None
) -> BatchEncoder:
    """How a batch of so many tokens is encoded for mutual or feature choice.

    Args:
        bundle: of the SAE.
        tiler: encodes with the bundle's graphs.
        tokens: n.
        k: matches a token; None means as fitted.
        max_density: see `limits`.

    Raises:
        ValueError: the SAE has no such allocation, or an option does not fit.
    """
    manifest, graph = bundle.manifest, tiler.graph
    allocation, d_sae = manifest.batch_allocation, manifest.architecture.d_sae
    tiler.open()  # checks that the bundle is the one that was loaded, before its threshold is read
    if max_density is not None and allocation.kind != "feature":
        raise ValueError(
            f"max_density belongs to feature choice, this SAE was fitted by {allocation.kind} choice; leave it out"
        )
    k = allocation.k if k is None else checked_k(manifest.architecture, k)
    total, limit = limits(allocation, d_sae, tokens, k=k, max_density=max_density)
    floor = floor_of(bundle, graph, total, limit, tokens) if k <= allocation.k else 0.0
    # Whether encode_exact.onnx is certain of a row depends on the bound. Without a floor the bound depends on the other
    # tiles, and so would the bits of the row's values. encode.onnx does not have this problem.
    plain = floor == 0 and graph == EXACT.file
    return BatchEncoder(tiler, d_sae, total, limit, floor, first_slots(manifest, k), plain)


def first_slots(manifest: Manifest, k: float) -> int:
    """The slots of a token in the first pass, at k matches a token, for mutual and feature choice.

    >>> first_slots(sae.manifest, 6), first_slots(sae.manifest, 3) <= first_slots(sae.manifest, 6)
    (24, True)
    """
    # The bundle's slots hold nearly every token at the fitted k; these hold nearly every token at this k.
    return math.ceil(max(_SLOTS * k, manifest.slots * k / manifest.batch_allocation.k))


def encode_by_batch(
    bundle: Bundle, tiler: Tiler, rows: Rows, *, k: float | None, max_density: ArrayLike | None
) -> Features:
    """Features [n] by the batch rule of the SAE's allocation. For token choice it is the served rule.

    Args:
        bundle: of the SAE.
        tiler: encodes with the bundle's graphs.
        rows: the n tokens of the batch.
        k: matches a token; None means as fitted.
        max_density: see `limits`.

    Raises:
        ValueError: the SAE has no allocation, an option does not fit, or a row or one of its features is not finite.
    """
    manifest, tokens = bundle.manifest, len(rows)
    d_sae = manifest.architecture.d_sae
    if manifest.batch_allocation.kind == "token" and max_density is None:
        return from_slots(tiler.served(rows, served_feed(manifest.architecture, k, None)), d_sae, (tokens,))
    encoder = batch_encoder(bundle, tiler, tokens, k=k, max_density=max_density)
    return encode_joint(
        partial(encoder.encode, rows),
        tokens,
        d_sae,
        total=encoder.total,
        limit=encoder.limit,
        tile=encoder.tile(tokens),
        floor=encoder.floor,
        fresh=tiler.tiling.fresh,
    )


def limits(
    allocation: Allocation, d_sae: int, tokens: int, *, k: float, max_density: ArrayLike | None = None
) -> tuple[int, NDArray[np.int64] | None]:
    """The total matches M of a batch, and for feature choice the limit m_i of each feature's matches, int64 [d_sae].

    Args:
        allocation: mutual or feature choice.
        d_sae: number of features.
        tokens: number of tokens in the batch.
        k: matches a token.
        max_density: the largest density of each feature, [d_sae], for feature choice; None means as fitted.

    Raises:
        ValueError: the densities are not d_sae numbers from 0 to 1.

    >>> limits(Allocation(kind="mutual", k=2.0), 5, 10, k=2.5)
    (25, None)
    """
    total = quota.total_matches(k, tokens)
    if allocation.quota is None:
        return total, None
    if max_density is None:
        density = quota.max_densities(allocation.quota, allocation.k, d_sae)
    else:
        density = as_array(max_density, "max_density")
    if density.shape != (d_sae,) or density.dtype.kind not in "fiu" or not ((density >= 0) & (density <= 1)).all():
        raise ValueError(f"max_density must be {d_sae} numbers from 0 to 1, got {density.dtype} {list(density.shape)}")
    return total, quota.tokens_per_feature(density.astype(np.float64), tokens)


def floor_of(bundle: Bundle, graph: str, total: int, limit: NDArray[np.int64] | None, tokens: int) -> float:
    """A value below the matches of a batch like those of training, or 0 if such a value does not help (our design).

    Args:
        bundle: with its threshold.
        graph: file name of the encoder graph. Only encode_exact.onnx takes less time with a higher bound.
        total: total matches of the batch.
        limit: limits of feature choice, [d_sae].
        tokens: number of tokens in the batch.
    """
    if graph != EXACT.file:
        return 0.0
    if limit is not None and int(np.minimum(limit, tokens).sum()) < _FREE * total:
        return 0.0  # the limits decide, and the thresholds tell little about the matches
    # Under feature choice most features share one threshold; the others have their own, since their limit binds.
    thresholds, counts = np.unique(bundle.tensor("threshold"), return_counts=True)
    return _FLOOR * float(thresholds[counts.argmax()])
