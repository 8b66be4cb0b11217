"""Rows of activations to slots of features, by the graph that a precision calls for."""

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sae_runtime.features import Slots
from sae_runtime.manifest import Manifest
from sae_runtime.sessions import Sessions, int8_levels
from sae_runtime.tuned import find

Precision = Literal["exact", "float32", "float16", "fast"]
GRAPHS = {
    "exact": "encode_exact.onnx",
    "float32": "encode.onnx",
    "float16": "encode_half.onnx",
    "fast": "encode_fast.onnx",
}
GPU = "encode_gpu.onnx"  # "exact" on a GPU
_TILE_BYTES = 1 << 25  # of latents [tile, d_sae]: small enough to stay in cache, large enough to feed all cores
_EXACT_TILES = 2  # times as many for encode_exact.onnx, which has some 200 small steps around its product
# d_sae. Below, what surrounds the int8 product takes longer than it saves (benchmarks/growth.py --graphs).
_SMALLEST = 6_144
_TOPK = 2  # times as large for "topk", which computes the k largest bounds in float32 to have a cut at all
_FEW_MATCHES = 32  # k; larger in proportion for more: so many rows of W_enc are read besides
_FEW = 64  # rows; for fewer, several threads share one product rather than several products

Feed = dict[str, NDArray[Any]]


def exact_graphs(manifest: Manifest) -> list[str]:
    """The graphs of a bundle that give the exact features on a CPU."""
    return [graph for graph in (GRAPHS["float32"], GRAPHS["exact"]) if graph in manifest.graphs]


def graph_for(manifest: Manifest, sessions: Sessions, precision: Precision) -> str:
    """The graph that a precision calls for, one for calls of every size.

    For "exact" on a CPU that is the one that `sae-runtime tune` found quicker here, and where it was not asked, a rule
    by size: nothing is timed now.

    Args:
        manifest: of the bundle.
        sessions: of its graphs.
        precision: "exact" and "float32" give the same matches; the manifest says what the others cost.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision != "exact":
        return GRAPHS[precision]
    if not sessions.on_cpu:
        return GPU if GPU in manifest.graphs else GRAPHS["float32"]
    if GRAPHS["exact"] not in manifest.graphs:
        return GRAPHS["float32"]  # which is as exact
    quicker = find(manifest, sessions.workers)
    if quicker in exact_graphs(manifest):
        return quicker
    encoder, allocation = manifest.encoder, manifest.allocation
    k = encoder.k or (manifest.width if allocation is None else allocation.k)
    smallest = _SMALLEST * (_TOPK if encoder.selection == "topk" else 1) * max(k / _FEW_MATCHES, 1)
    return GRAPHS["exact" if encoder.d_sae >= smallest else "float32"]


class Encoder:
    """The served rule. Safe to share between threads.

    Rows that "exact" is not certain of are encoded again in full, and rows that fill all their slots wider.

    Args:
        manifest: of the bundle.
        sessions: of its graphs.
        graph: the one to encode by, of `graph_for`.

    Raises:
        BundleError: the bundle was exported without the graph.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions, graph: str) -> None:
        self._encoder, self._sessions, self.graph = manifest.encoder, sessions, graph
        self._levels = self.graph in (GRAPHS["exact"], GRAPHS["fast"])
        most = _TILE_BYTES * (_EXACT_TILES if self.graph == GRAPHS["exact"] else 1)
        self.tile = min(max(most // (4 * self._encoder.d_sae), 16), 1024)
        self._lock, self._tokens, self._redone = threading.Lock(), 0, 0
        sessions.open(self.graph)

    @property
    def redone(self) -> tuple[int, int]:
        """Tokens that were encoded again in full, since "exact" was not certain of them, and all tokens."""
        return self._redone, self._tokens

    def tiles(self, tokens: int) -> int:
        """Rows that are encoded at once, of so many: what stays in cache, and for `each` as much for every worker."""
        if not self._levels:
            return self.tile
        rounds = max(math.ceil(tokens / (self.tile * self._sessions.workers)), 1)
        return max(math.ceil(tokens / (rounds * self._sessions.workers)), min(self.tile, _FEW))

    def each(self, encode: Callable[..., Slots], parts: Iterable[NDArray[np.float32]], feed: Feed) -> Iterator[Slots]:
        """`encode`, one of the methods below, of several parts, in their order.

        Graphs with int8 have many small steps between their products, at which all threads but one would wait: there
        each worker encodes parts of its own.
        """
        parts = iter(parts)
        first = list(itertools.islice(parts, 2))
        if len(first) < 2 or not self._levels or self._sessions.workers == 1:
            yield from (encode(part, feed) for part in itertools.chain(first, parts))
            return
        waiting: deque[Future[Slots]] = deque()
        with ThreadPoolExecutor(self._sessions.workers) as pool:
            try:
                for part in itertools.chain(first, parts):
                    waiting.append(pool.submit(encode, part, feed, shared=True))
                    if len(waiting) > self._sessions.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # a part that fails ends it all
                pool.shutdown(wait=True, cancel_futures=True)

    def slots(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """Slots [n, width] of x [n, d_in]; `feed` holds the optional inputs of encode.onnx, `shared` is for `each`."""
        if self.graph == GPU and feed:  # its sizes are fixed
            return self.plain(x, feed, shared=shared)
        levels = {"levels": np.array(int8_levels(), np.float32)} if self._levels else {}
        indices, values, *certain = self._sessions.run(self.graph, {"x": x, **feed, **levels}, shared=shared)
        if certain:
            again = np.flatnonzero(~certain[0])
            with self._lock:
                self._tokens, self._redone = self._tokens + len(x), self._redone + len(again)
            if len(again):
                indices[again], values[again] = self.plain(np.ascontiguousarray(x[again]), feed)
        return indices, values

    def plain(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """The same by encode.onnx."""
        slots: Slots = self._sessions.run(GRAPHS["float32"], {"x": x, **feed}, shared=shared)
        return slots

    def all_slots(self, x: NDArray[np.float32], feed: Feed, *, plain: bool = False, shared: bool = False) -> Slots:
        """The same, as wide as the fullest row needs."""
        indices, values = self.plain(x, feed) if plain else self.slots(x, feed, shared=shared)
        width = values.shape[1]
        if self._encoder.selection != "threshold" or width == self._encoder.d_sae:
            return indices, values
        # A token that fills all its slots may have been cut: encode those again, wider.
        full = np.flatnonzero(values[:, -1] > 0)
        if not len(full):
            return indices, values
        wider = {**feed, "width": np.array([min(4 * width, self._encoder.d_sae)])}
        more_indices, more_values = self.all_slots(np.ascontiguousarray(x[full]), wider, plain=plain, shared=shared)
        grow = ((0, 0), (0, more_values.shape[1] - width))
        indices, values = np.pad(indices, grow), np.pad(values, grow)
        indices[full], values[full] = more_indices, more_values
        return indices, values
