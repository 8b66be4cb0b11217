"""The sizes of tiles, and the SAE sizes for which a graph is chosen. They change speed, never features."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Settings of size. The defaults are measured (benchmarks/growth.py --graphs); tests use others.

    Attributes:
        rows: rows of a tile; None means as many as fit in `tile_bytes`, from 16 to 1,024.
        tile_bytes: bytes of the pre-activations [rows, d_sae] of a tile. They fit in the cache and occupy all cores.
        exact_tiles: factor of the tile of encode_exact.onnx, which has some 200 small steps around its product.
        smallest: least d_sae for which encode_exact.onnx is chosen. For a smaller SAE the steps around the int8 product
            take longer than the product saves.
        topk_factor: factor of this d_sae for "topk", which computes the k largest bounds in float32.
        base_k: largest k for which `smallest` holds. For a larger k it grows in proportion, since encode_exact.onnx
            reads more rows of W_enc.
        few_rows: least rows of a tile that one of several threads encodes alone.
        fresh: least number of candidates that the batch rule gathers before it cuts them.

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
        """Rows of a tile, for encode_exact.onnx (`exact`) or another graph."""
        if self.rows is not None:
            return self.rows
        tile_bytes = self.tile_bytes * (self.exact_tiles if exact else 1)
        return min(max(tile_bytes // (4 * d_sae), 16), 1024)

    def shared_tile(self, tile: int, *, tokens: int, workers: int) -> int:
        """Rows of a tile, if each worker encodes its own tiles: all workers get the same number of rows.

        >>> Tiling().shared_tile(100, tokens=1000, workers=3)  # four full rounds instead of three and a third
        84
        """
        rounds = max(math.ceil(tokens / (tile * workers)), 1)
        return max(math.ceil(tokens / (rounds * workers)), min(tile, self.few_rows))

    def smallest_exact(self, *, topk: bool, k: float) -> float:
        """Least d_sae for which encode_exact.onnx is chosen, by selection and k."""
        return self.smallest * (self.topk_factor if topk else 1) * max(k / self.base_k, 1)


DEFAULT = Tiling()
