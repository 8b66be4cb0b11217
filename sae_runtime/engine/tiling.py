"""Sizes by which the runtime cuts its work into tiles and chooses a graph; none changes which features are active."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The engine's settings of size; the defaults were measured, and tests give others.

    Attributes:
        rows: rows of a tile; None means as many as `tile_bytes` hold, from 16 to 1,024.
        tile_bytes: bytes of the pre-activations [rows, d_sae] of a tile: they fit in the cache and feed all cores.
        exact_tiles: how many times larger a tile of encode_exact.onnx is, which has some 200 small steps around its
            product.
        smallest: the d_sae from which encode_exact.onnx is chosen; below it, what surrounds the int8 product takes
            longer than it saves (benchmarks/growth.py --graphs).
        topk_factor: how many times larger that d_sae is for "topk", which computes the k largest bounds in float32.
        base_k: the k up to which `smallest` holds; it grows in proportion beyond, since more rows of W_enc are read.
        few_rows: rows of which several threads share one product; of more rows, each thread has its own products.
        fresh: candidates of the batch rule that are gathered before they are cut, at least.

    >>> Tiling().tile(d_sae=24_576), Tiling().tile(d_sae=24_576, exact=True), Tiling(rows=8).tile(d_sae=24_576)
    (341, 682, 8)
    """

    rows: int | None = None
    tile_bytes: int = 1 << 25
    exact_tiles: int = 2
    smallest: int = 6_144
    topk_factor: int = 2
    base_k: int = 32
    few_rows: int = 64
    fresh: int = 1 << 16

    def tile(self, *, d_sae: int, exact: bool = False) -> int:
        """Rows of a tile, of encode_exact.onnx (`exact`) or of another graph."""
        if self.rows is not None:
            return self.rows
        tile_bytes = self.tile_bytes * (self.exact_tiles if exact else 1)
        return min(max(tile_bytes // (4 * d_sae), 16), 1024)

    def shared_tile(self, tile: int, *, tokens: int, workers: int) -> int:
        """Rows of a tile where each worker encodes tiles of its own, so that all workers get equally many rows.

        >>> Tiling().shared_tile(100, tokens=1000, workers=3)  # four rounds of tiles, not three and a third
        84
        """
        rounds = max(math.ceil(tokens / (tile * workers)), 1)
        return max(math.ceil(tokens / (rounds * workers)), min(tile, self.few_rows))

    def smallest_exact(self, *, topk: bool, k: float) -> float:
        """The d_sae from which encode_exact.onnx is chosen, for a selection and its k."""
        return self.smallest * (self.topk_factor if topk else 1) * max(k / self.base_k, 1)


DEFAULT = Tiling()
