"""The batch rule of one bundle: its limits, the floor and slots of its first pass, and its graphs as `Encode`."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.core.features import Features, Slots
from sae_runtime.engine.batch_rule import encode_joint
from sae_runtime.engine.checks import refuse_overflow
from sae_runtime.engine.tiler import EXACT, GPU, PLAIN, Tiler

_FLOOR = 0.85  # of the served threshold; a batch whose cut lies lower costs a second pass over its rows
_FREE = 1.5  # times the total matches: limits that leave so much room seldom bind
_SLOTS = 2  # times k: slots of the first pass, at least


def encode_by_batch(
    bundle: Bundle,
    tiler: Tiler,
    read: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    tokens: int,
    *,
    k: float | None,
    max_density: ArrayLike | None,
    name_row: Callable[[int], str],
) -> Features:
    """Features [tokens] by the batch rule of mutual or feature choice.

    Args:
        bundle: with its allocation.
        tiler: encodes by the bundle's graphs.
        read: gives finite float32 rows by their numbers.
        tokens: number of rows.
        k: matches a token; None means as fitted.
        max_density: see `limits`.
        name_row: what a message calls a row.
    """
    manifest = bundle.manifest
    allocation, d_sae = manifest.batch_allocation, manifest.architecture.d_sae
    k = allocation.k if k is None else k
    total, limit = limits(allocation, d_sae, tokens, k=k, max_density=max_density)
    floor = floor_of(bundle, tiler.graph, total, limit, tokens) if k <= allocation.k else 0.0
    # Nearly every token has room at this k: the bundle's slots hold nearly every token at the fitted k.
    slots = math.ceil(max(_SLOTS * k, manifest.slots * k / allocation.k))
    # encode_exact.onnx may be certain of a row or not according to the bound. Without a floor the bound follows from
    # other tiles, and the bits of a row's values would too: encode.onnx takes its place.
    plain = floor == 0 and tiler.graph == EXACT

    def encode(tiles: Sequence[NDArray[np.int64]], bound: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
        feed = {"threshold": bound, "slots": np.array([min(4 * slots if whole else slots, d_sae)])}
        method = partial(tiler.all_slots, plain=True) if whole else tiler.plain if plain else tiler.slots
        for ids, encoded in zip(tiles, tiler.map(method, map(read, tiles), feed), strict=True):
            refuse_overflow(encoded, ids, name_row)
            yield encoded

    tile = tiler.tile if plain else tiler.tile_for(tokens)
    return encode_joint(
        encode, tokens, d_sae, total=total, limit=limit, tile=tile, floor=floor, fresh=tiler.tiling.fresh
    )


def limits(
    allocation: Allocation, d_sae: int, tokens: int, *, k: float, max_density: ArrayLike | None = None
) -> tuple[int, NDArray[np.int64] | None]:
    """Total matches of a batch, M, and for feature choice the tokens that each feature may match, m_i [d_sae].

    Args:
        allocation: mutual or feature choice.
        d_sae: number of features.
        tokens: tokens of the batch.
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
    density = np.asarray(
        quota.max_densities(allocation.quota, allocation.k, d_sae) if max_density is None else max_density
    )
    if density.shape != (d_sae,) or density.dtype.kind not in "fiu" or not ((density >= 0) & (density <= 1)).all():
        raise ValueError(f"max_density must be {d_sae} numbers from 0 to 1, got {density.dtype} {list(density.shape)}")
    return total, quota.tokens_per_feature(density.astype(np.float64), tokens)


def floor_of(bundle: Bundle, graph: str, total: int, limit: NDArray[np.int64] | None, tokens: int) -> float:
    """A value that the matches of a batch like those of training exceed, or 0 where none is known or useful."""
    if graph in (PLAIN, GPU):
        return 0.0  # the dense product costs the same from any bound on
    if limit is not None and int(np.minimum(limit, tokens).sum()) < _FREE * total:
        return 0.0  # the limits decide, and the thresholds say little about them
    # The thresholds of feature choice are one common cut, but for features whose own limit binds.
    thresholds, counts = np.unique(bundle.tensor("threshold"), return_counts=True)
    return _FLOOR * float(thresholds[counts.argmax()])
