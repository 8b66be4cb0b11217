"""Rows of activations to slots of features, tile by tile, with one of the bundle's encoder graphs."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle, BundleError
from sae_runtime.bundle.graphs import ENCODE, ENCODERS, EXACT, GPU
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.slots import Slots
from sae_runtime.engine.answers import checked, refuse_negative
from sae_runtime.engine.options import Feed
from sae_runtime.engine.rows import Rows
from sae_runtime.engine.sessions import Sessions, int8_levels
from sae_runtime.engine.tiling import Tiling


def choose_graph(bundle: Bundle, sessions: Sessions, graph: str | None, tiling: Tiling) -> str:
    """The file name of the graph that encodes calls of every size.

    Args:
        bundle: with its graphs.
        sessions: of the bundle.
        graph: the graph that the caller names; None chooses by the provider and the size of the SAE.
        tiling: the sizes by which the choice is made.

    Raises:
        BundleError: the bundle has no encoder graph of this name.
    """
    manifest = bundle.manifest
    available = [name for name in ENCODERS if name in manifest.graphs]
    if graph is not None:
        if available and graph not in available:
            raise BundleError(
                f"{bundle.path} has no encoder graph {graph!r}, expected {' or '.join(available)}; "
                "name one of these, or export more with --graph"
            )
        # A bundle without graphs is refused when its session is opened.
        return graph if graph in ENCODERS else ENCODE.file
    if not sessions.on_cpu:
        return GPU.file if GPU.file in available else ENCODE.file
    architecture, allocation = manifest.architecture, manifest.allocation
    k = architecture.k or (manifest.slots if allocation is None else allocation.k)
    smallest = tiling.smallest_exact(topk=architecture.selection == "topk", k=k)
    return EXACT.file if EXACT.file in available and architecture.d_sae >= smallest else ENCODE.file


class Tiler:
    """Encodes rows by the served rule. Threads may share a tiler. A pickled one counts its tokens from 0.

    If encode_exact.onnx or encode_gpu.onnx is not certain of a row, encode.onnx encodes the row again. If a row fills
    all its slots, it is encoded again with more slots.

    Args:
        manifest: of the bundle.
        sessions: of the bundle.
        graph: file name of the encoder graph, as `choose_graph` gives it.
        tiling: sizes of tiles.
    """

    def __init__(self, manifest: Manifest, sessions: Sessions, graph: str, tiling: Tiling) -> None:
        self._manifest, self._sessions, self.graph, self.tiling = manifest, sessions, graph, tiling
        self._architecture = manifest.architecture
        self.tile = tiling.tile(d_sae=manifest.architecture.d_sae, exact=graph == EXACT.file)
        self._tokens, self._redone = 0, 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Tiler, (self._manifest, self._sessions, self.graph, self.tiling)

    def open(self) -> None:
        """Open the graph now rather than at its first use.

        Raises:
            BundleError: the bundle lacks the graph, or changed since it was read.
        """
        self._sessions.open(self.graph)

    @property
    def redone(self) -> tuple[int, int]:
        """Number of tokens that encode.onnx encoded again because the graph was not certain, and of all tokens."""
        return self._redone, self._tokens

    def tile_for(self, tokens: int) -> int:
        """Rows of a tile, if `map` encodes this many tokens."""
        if self.graph != EXACT.file:
            return self.tile
        return self.tiling.shared_tile(self.tile, tokens=tokens, workers=self._sessions.workers)

    def served(self, rows: Rows, feed: Feed) -> Iterator[Slots]:
        """The slots of all rows, tile by tile. A tile has at least as many slots as its fullest row needs.

        Raises:
            ValueError: a row, or one of its features, is not finite.
        """
        tiles = tiles_of(np.arange(len(rows)), self.tile_for(len(rows)))
        return self.map(self.all_slots, rows, tiles, feed)

    def map(
        self, encode: Callable[..., Slots], rows: Rows, tiles: Sequence[NDArray[np.int64]], feed: Feed
    ) -> Iterator[Slots]:
        """The slots of tiles of rows, in the order of the tiles.

        With encode_exact.onnx each worker thread encodes its own tiles. If all threads shared one session, they would
        wait for each other at the many small steps between the int8 products.

        Args:
            encode: `slots`, `plain` or `all_slots`.
            rows: the activations.
            tiles: the row numbers of each tile, ascending.
            feed: the optional inputs of encode.onnx.

        Raises:
            ValueError: a row, or one of its features, is not finite.
        """
        workers = self._sessions.workers
        encoded: Iterator[Slots]
        if len(tiles) < 2 or self.graph != EXACT.file or workers == 1:
            encoded = (encode(x, feed) for x in map(rows, tiles))
        else:
            encoded = self._in_threads(encode, map(rows, tiles), feed, workers)
        for tile, slots in zip(tiles, encoded, strict=True):
            rows.refuse_overflow(tile, slots)
            refuse_negative(self.graph, slots[1])
            yield slots

    def _in_threads(
        self, encode: Callable[..., Slots], parts: Iterator[NDArray[np.float32]], feed: Feed, workers: int
    ) -> Iterator[Slots]:
        pending: deque[Future[Slots]] = deque()
        try:
            for part in parts:
                pending.append(self._sessions.pool.submit(encode, part, feed, shared=True))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # if a part fails, wait for the parts that are still running
            wait([future for future in pending if not future.cancel()])

    def slots(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """Slots of x [n, d_in], as many as the feed or else the bundle gives a token.

        Args:
            x: rows of activations.
            feed: the optional inputs of encode.onnx.
            shared: compute on the calling thread alone, since other threads use the other cores.
        """
        if self.graph == GPU.file and feed:  # encode_gpu.onnx has no optional inputs
            return self.plain(x, feed, shared=shared)
        levels = {"levels": np.array(int8_levels(), np.float32)} if self.graph == EXACT.file else {}
        indices, values, *certain = self._run(self.graph, x, feed | levels, shared=shared)
        if certain:
            again = np.flatnonzero(~certain[0])
            with self._sessions.lock:
                self._tokens, self._redone = self._tokens + len(x), self._redone + len(again)
            if len(again):
                indices[again], values[again] = self.plain(np.ascontiguousarray(x[again]), feed)
        return indices, values

    def plain(self, x: NDArray[np.float32], feed: Feed, *, shared: bool = False) -> Slots:
        """The same as `slots`, always with encode.onnx."""
        slots: Slots = self._run(ENCODE.file, x, feed, shared=shared)
        return slots

    def _run(self, graph: str, x: NDArray[np.float32], feed: Feed, *, shared: bool) -> Any:
        """The outputs of an encoder, with their types and shapes."""
        slots = (len(x), int(feed["slots"][0]) if "slots" in feed else self._manifest.slots)
        certain = [] if graph == ENCODE.file else [(np.bool_, (len(x),))]
        outputs = self._sessions.run(graph, {"x": x, **feed}, shared=shared)
        return checked(graph, outputs, (np.int64, slots), (np.float32, slots), *certain)

    def all_slots(self, x: NDArray[np.float32], feed: Feed, *, plain: bool = False, shared: bool = False) -> Slots:
        """The same as `slots` (or `plain`), with at least as many slots as the fullest row needs."""
        indices, values = self.plain(x, feed) if plain else self.slots(x, feed, shared=shared)
        slots = values.shape[1]
        # A row that fills all its slots may lack features.
        full = np.flatnonzero(values[:, -1] > 0)
        if self._architecture.selection != "threshold" or slots == self._architecture.d_sae or not len(full):
            return indices, values
        more = {**feed, "slots": np.array([min(4 * slots, self._architecture.d_sae)])}
        more_indices, more_values = self.all_slots(np.ascontiguousarray(x[full]), more, plain=plain, shared=shared)
        grow = ((0, 0), (0, more_values.shape[1] - slots))
        indices, values = np.pad(indices, grow), np.pad(values, grow)
        indices[full], values[full] = more_indices, more_values
        return indices, values


def tiles_of(rows: NDArray[np.int64], tile: int) -> list[NDArray[np.int64]]:
    """Numbers of rows in runs of `tile` numbers; the last run may be shorter.

    >>> [part.tolist() for part in tiles_of(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return [rows[begin : begin + tile] for begin in range(0, len(rows), tile)]
