"""Rows of activations to slots of features, tile by tile, by one of the bundle's encoder graphs."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle, BundleError
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.features import Slots
from sae_runtime.engine.sessions import Sessions, int8_levels
from sae_runtime.engine.tiling import Tiling

PLAIN = "encode.onnx"  # the dense product
EXACT = "encode_exact.onnx"  # an int8 product bounds all features; float32 decides
GPU = "encode_gpu.onnx"  # the same with float16 in place of int8
ENCODERS = (PLAIN, EXACT, GPU)  # all three give the same matches

Feed = dict[str, NDArray[Any]]


def choose_graph(bundle: Bundle, sessions: Sessions, graph: str | None, tiling: Tiling) -> str:
    """The graph that encodes calls of every size: the named one, or by a rule of size.

    Raises:
        BundleError: the bundle has no encoder graph of that name.
    """
    manifest = bundle.manifest
    available = [name for name in ENCODERS if name in manifest.graphs]
    if graph is None:
        return _graph_by_size(manifest, sessions, tiling)
    if available and graph not in available:
        raise BundleError(
            f"{bundle.path} has no encoder graph {graph!r}, expected {' or '.join(available)}; "
            "name one of these, or export more with --graph"
        )
    return graph if graph in ENCODERS else PLAIN  # a bundle without graphs is refused when its session is opened


def _graph_by_size(manifest: Manifest, sessions: Sessions, tiling: Tiling) -> str:
    if not sessions.on_cpu:
        return GPU if GPU in manifest.graphs else PLAIN
    architecture, allocation = manifest.architecture, manifest.allocation
    k = architecture.k or (manifest.slots if allocation is None else allocation.k)
    smallest = tiling.smallest_exact(topk=architecture.selection == "topk", k=k)
    return EXACT if EXACT in manifest.graphs and architecture.d_sae >= smallest else PLAIN


class Tiler:
    """Encodes rows by the served rule. Safe to share between threads.

    Rows that encode_exact.onnx or encode_gpu.onnx is not certain of are encoded again by encode.onnx, and rows that
    fill all their slots are encoded again with more slots.

    Args:
        manifest: of the bundle.
        sessions: of its graphs.
        graph: the one to encode by, as `choose_graph` gives it.
        tiling: sizes of tiles.

    Raises:
        BundleError: the bundle was exported without the graph.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions, graph: str, tiling: Tiling) -> None:
        self._architecture, self._sessions, self.graph, self.tiling = manifest.architecture, sessions, graph, tiling
        self.tile = tiling.tile(d_sae=manifest.architecture.d_sae, exact=graph == EXACT)
        self._lock, self._tokens, self._redone = threading.Lock(), 0, 0
        sessions.open(graph)

    @property
    def redone(self) -> tuple[int, int]:
        """Tokens that encode.onnx encoded again, since the graph was not certain of them, and all tokens."""
        return self._redone, self._tokens

    def tile_for(self, tokens: int) -> int:
        """Rows of the tiles in which `map` encodes so many tokens."""
        if self.graph != EXACT:
            return self.tile
        return self.tiling.shared_tile(self.tile, tokens=tokens, workers=self._sessions.workers)

    def map(self, encode: Callable[..., Slots], parts: Iterable[NDArray[np.float32]], feed: Feed) -> Iterator[Slots]:
        """The slots of parts of rows by `encode`, one of the methods below, in the order of the parts.

        The threads of a session would wait for each other at the many small steps between the int8 products: with
        encode_exact.onnx each worker encodes parts of its own, on one thread.
        """
        parts = iter(parts)
        first = list(itertools.islice(parts, 2))
        workers = self._sessions.workers
        if len(first) < 2 or self.graph != EXACT or workers == 1:
            yield from (encode(part, feed) for part in itertools.chain(first, parts))
            return
        pending: deque[Future[Slots]] = deque()
        try:
            for part in itertools.chain(first, parts):
                pending.append(self._sessions.pool.submit(encode, part, feed, shared=True))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # after a part that fails, no other part is left running
            wait([future for future in pending if not future.cancel()])

    def slots(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """Slots of x [n, d_in], as many as the bundle has.

        Args:
            x: rows of activations.
            feed: the optional inputs of encode.onnx.
            shared: compute on the caller's thread; other callers use the other cores.
        """
        if self.graph == GPU and feed:  # its number of slots and its cut are fixed
            return self.plain(x, feed, shared=shared)
        levels = {"levels": np.array(int8_levels(), np.float32)} if self.graph == EXACT else {}
        indices, values, *certain = self._sessions.run(self.graph, {"x": x, **feed, **levels}, shared=shared)
        if certain:
            again = np.flatnonzero(~certain[0])
            with self._lock:
                self._tokens, self._redone = self._tokens + len(x), self._redone + len(again)
            if len(again):
                indices[again], values[again] = self.plain(np.ascontiguousarray(x[again]), feed)
        return indices, values

    def plain(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """The same slots by encode.onnx."""
        slots: Slots = self._sessions.run(PLAIN, {"x": x, **feed}, shared=shared)
        return slots

    def all_slots(self, x: NDArray[np.float32], feed: Feed, *, plain: bool = False, shared: bool = False) -> Slots:
        """The same with as many slots as the fullest row needs, or more."""
        indices, values = self.plain(x, feed) if plain else self.slots(x, feed, shared=shared)
        slots = values.shape[1]
        if self._architecture.selection != "threshold" or slots == self._architecture.d_sae:
            return indices, values
        # A row that fills all its slots may lack features: it is encoded again with four times as many slots.
        full = np.flatnonzero(values[:, -1] > 0)
        if not len(full):
            return indices, values
        wider = {**feed, "slots": np.array([min(4 * slots, self._architecture.d_sae)])}
        more_indices, more_values = self.all_slots(np.ascontiguousarray(x[full]), wider, plain=plain, shared=shared)
        grow = ((0, 0), (0, more_values.shape[1] - slots))
        indices, values = np.pad(indices, grow), np.pad(values, grow)
        indices[full], values[full] = more_indices, more_values
        return indices, values


def tiles_of(rows: NDArray[np.int64], tile: int) -> list[NDArray[np.int64]]:
    """Numbers of rows, so many at a time.

    >>> [part.tolist() for part in tiles_of(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [rows[begin : begin + tile] for begin in range(0, len(rows), tile)]
