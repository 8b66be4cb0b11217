"""The front door for arrays: features of activations, activations of features, and edits, through onnxruntime."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import hub
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.edits import Edit, as_inputs
from sae_runtime.core.features import Features, Slots, from_slots
from sae_runtime.engine.batch_encoding import encode_by_batch
from sae_runtime.engine.checks import finite, gates_of, mask_of, place_of, refuse_overflow, thresholds_of
from sae_runtime.engine.device_tensors import T, encode_tensor
from sae_runtime.engine.sessions import CPU, Provider, Sessions
from sae_runtime.engine.tiler import GPU, PLAIN, Feed, Tiler, choose_graph, tiles_of
from sae_runtime.engine.tiling import DEFAULT, Tiling

Read = Callable[[NDArray[np.int64]], NDArray[Any]]
"""Gives rows of activations by their numbers, ascending: [len(ids), d_in], any real type."""


def load(
    path: str | Path,
    *,
    graph: str | None = None,
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    verify: bool = True,
    tiling: Tiling = DEFAULT,
) -> "SAE":
    """Open an exported bundle.

    Args:
        path: the bundle's folder, or `hf://owner/name[/folder][@revision]` of the Hub.
        graph: the encoder graph, such as "encode.onnx"; None chooses by the SAE's size between encode.onnx and
            encode_exact.onnx, and on CUDA takes encode_gpu.onnx. All give the same matches.
        providers: onnxruntime execution providers, the preferred one first; with options, a pair of name and options.
        threads: threads an operator may use; None means all cores.
        verify: compare every hash and look for numbers that are not finite; without it, sizes and graph hashes only.
        tiling: sizes of tiles; the defaults suit all machines that were measured.

    Raises:
        BundleError: the folder is no valid bundle, or was not exported yet, or has no such graph.
        ImportError: onnxruntime is not installed.
        ValueError: a provider is not available here.

    >>> load("runs/my-sae", graph="encode.onnx")  # doctest: +SKIP
    SAE(mutual choice, k 16, 384 -> 1,536, all-MiniLM-L6-v2 encoder.layer.3, encode.onnx)
    """
    bundle = bundles.read(hub.local(path), verify=verify)
    sessions = Sessions(bundle, providers=providers, threads=threads, verify=verify)
    return SAE(bundle, sessions, choose_graph(bundle, sessions, graph, tiling), tiling)


class SAE:
    """A sparse autoencoder ready to serve, by one of its encoder graphs. Safe to share between threads."""

    def __init__(self, bundle: Bundle, sessions: Sessions, graph: str = PLAIN, tiling: Tiling = DEFAULT) -> None:
        self._bundle, self._sessions = bundle, sessions
        self._tiler = Tiler(bundle.manifest, sessions, graph, tiling)

    def __repr__(self) -> str:
        manifest, architecture = self.manifest, self.manifest.architecture
        allocation = manifest.allocation
        rule = architecture.selection if allocation is None else f"{allocation.kind} choice, k {allocation.k:g}"
        sizes = f"{self.d_in:,} -> {self.d_sae:,}" + ("" if architecture.d_out is None else f" -> {self.d_out:,}")
        model = manifest.model and manifest.model.rpartition("/")[2]
        source = " ".join(filter(None, (model, manifest.hook)))
        return f"SAE({', '.join(filter(None, (rule, sizes, source, self.graph)))})"

    @property
    def manifest(self) -> Manifest:
        """What the SAE is, where it came from and what it measured."""
        return self._bundle.manifest

    @property
    def graph(self) -> str:
        """The graph that encodes, such as "encode.onnx"."""
        return self._tiler.graph

    @property
    def d_in(self) -> int:
        """Length of an activation vector."""
        return self.manifest.architecture.d_in

    @property
    def d_out(self) -> int:
        """Length of a reconstruction: d_in, or another one for a transcoder."""
        return self.manifest.architecture.d_x_hat

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.manifest.architecture.d_sae

    @property
    def redone(self) -> tuple[int, int]:
        """Tokens that encode.onnx encoded again, since the graph was not certain of them, and all tokens it encoded."""
        return self._tiler.redone

    def close(self) -> None:
        """Let go of the graphs and end the threads that encode; a later call opens them anew."""
        self._sessions.close()

    def encode(self, x: ArrayLike, *, k: int | None = None, threshold: ArrayLike | None = None) -> Features:
        """Features of activations by the served rule, which decides each token for itself.

        Args:
            x: [..., d_in], any real type; cast to float32 once.
            k: matches a token, for token choice (TopK); None means as fitted.
            threshold: what an activation must exceed, one number or [d_sae], for mutual and feature choice; None means
                as fitted.

        Raises:
            ValueError: another d_in, NaN or Inf (the message names the row), or an option of another allocation.

        >>> sae.encode(x).shape
        (6,)
        >>> len(sae.encode(x, threshold=1e9).values)
        0
        """
        flat, shape = self._flat(x)
        return from_slots(self._encoded(flat, shape, self._feed(k, threshold)), self.d_sae, shape)

    def encode_slots(self, x: ArrayLike, *, k: int | None = None, threshold: ArrayLike | None = None) -> Slots:
        """The same as dense arrays: indices i64 and values f32 [..., slots], as many slots as the fullest token needs.

        Each token's features stand by falling value, and an unused slot has value 0. Arguments and errors are those of
        `encode`.

        >>> indices, values = sae.encode_slots(x)
        >>> indices.shape == values.shape == (6, sae.encode(x).l0().max())
        True
        """
        flat, shape = self._flat(x)
        parts = list(self._encoded(flat, shape, self._feed(k, threshold)))
        slots = max([1, *(int((values > 0).sum(axis=1).max()) for _, values in parts)])
        indices, values = np.zeros((len(flat), slots), np.int64), np.zeros((len(flat), slots), np.float32)
        begin = 0
        for some_indices, some_values in parts:
            rows = slice(begin, begin := begin + len(some_values))
            used = min(slots, some_values.shape[1])
            values[rows, :used] = some_values[:, :used]
            indices[rows, :used] = np.where(some_values[:, :used] > 0, some_indices[:, :used], 0)
        return indices.reshape(*shape, slots), values.reshape(*shape, slots)

    def encode_batch(
        self,
        x: ArrayLike | Read,
        tokens: int | None = None,
        *,
        k: float | None = None,
        max_density: ArrayLike | None = None,
        valid: ArrayLike | None = None,
    ) -> Features:
        """Features of activations by the batch rule, which spends k matches a token over all tokens, as in training.

        For token choice it is the same as `encode`.

        Args:
            x: [..., d_in], any real type; or a function that gives rows by their numbers, such as `Activations.rows`,
                for activations that memory does not hold. It is asked for each row once, and again for a row that has
                far more features than most.
            tokens: how many rows such a function gives.
            k: matches a token, on average; None means as fitted.
            max_density: the largest share of the tokens that each feature may be active on, [d_sae], for feature
                choice; None means as fitted.
            valid: bool [...], for an array: tokens that are False (padding) match nothing and spend nothing.

        Raises:
            ValueError: as `encode`; the SAE comes without an allocation; or x gives other rows than it was asked for.

        >>> sae.encode_batch(x, k=2).l0().sum()
        np.int64(12)
        >>> sae.encode_batch(lambda ids: x[ids], 6, k=2)
        Features(6 tokens, 12 matches, L0 2.00, d_sae 150)
        """
        kind = self.manifest.batch_allocation.kind
        self._check_k(k)
        if max_density is not None and kind != "feature":
            raise ValueError(
                f"max_density belongs to feature choice, this SAE was fitted by {kind} choice; leave it out"
            )
        read, ids, shape = self._reader(x, tokens, valid)

        def name_row(number: int) -> str:
            return place_of(int(ids[number]), shape)

        def rows(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
            return finite(read(ids[numbers]), lambda row: name_row(int(numbers[row])))

        if kind == "token":
            features = from_slots(self._slots(rows, len(ids), self._feed(k, None), name_row), self.d_sae, ids.shape)
        else:
            features = encode_by_batch(
                self._bundle, self._tiler, rows, len(ids), k=k, max_density=max_density, name_row=name_row
            )
        return features.spread(ids, shape)

    def encode_tensor(self, x: T) -> tuple[T, T]:
        """Features of a tensor of torch, CuPy or numpy by the served rule, on its device and without copies.

        encode_gpu.onnx computes them where the SAE was loaded with it, and encode.onnx otherwise.

        Args:
            x: float32 [n, d_in], contiguous, on the device of the preferred provider. The features of a row that is not
                finite are undefined.

        Returns:
            Indices i64 and values f32 [n, slots], tensors of the same kind, with the manifest's number of slots. A row
            stands by falling value, and unused slots have value 0. Where a threshold fills a row's last slot, the row
            may lack features.

        Raises:
            ImportError: onnxruntime is older than 1.27, which has no DLPack.
            ValueError: x is not such a tensor.

        >>> indices, values = sae.encode_tensor(x)
        >>> values.shape == (6, sae.manifest.slots)
        True
        """
        return encode_tensor(self._sessions, self.manifest, GPU if self.graph == GPU else PLAIN, x)

    def decode(self, features: Features, x: ArrayLike | None = None) -> NDArray[np.float32]:
        """Reconstructed activations: float32 [*features.shape, d_out].

        Args:
            features: of any activations.
            x: those activations, [*features.shape, d_in]. An SAE needs them that normalises them or adds a linear skip
                of them (`manifest.architecture.decodes_with_x`); others ignore them.

        Raises:
            ValueError: the features are of an SAE with another number of features, or x is missing, or of another
                shape or not finite where it is needed.

        >>> sae.decode(sae.encode(x)).shape
        (6, 24)
        """
        if features.d_sae != self.d_sae:
            raise ValueError(
                f"features of an SAE with {features.d_sae}, this one has {self.d_sae}; encode with this one"
            )
        rows = self._rows_beside(features, x) if self.manifest.architecture.decodes_with_x else None
        tile = max(self._tiler.tile // 4, 1)  # decode.onnx gathers a row of W_dec for every match
        out = np.empty((len(features), self.d_out), np.float32)
        for begin in range(0, len(features), tile):
            part = slice(begin, begin + tile)
            indices, values = features[part].to_slots()
            feed: Feed = {"indices": indices, "values": values}
            if rows is not None:
                feed["x"] = rows[part]
            (out[part],) = self._sessions.run("decode.onnx", feed)
        return out.reshape(*features.shape, self.d_out)

    def steer(
        self,
        x: ArrayLike,
        edits: Edit | Sequence[Edit] | Sequence[Sequence[Edit]],
        *,
        gate: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """Activations with some features edited and all else kept, the part included that the SAE cannot explain.

        Args:
            x: [..., d_in].
            edits: one edit or a list for all tokens, or, for x [b, t, d_in], a list for each of the b requests.
            gate: how much of the edit each token gets, broadcastable to [...]; None means 1 everywhere.

        Returns:
            float32 [..., d_in]; equal to x where there are no edits.

        Raises:
            ValueError: another d_in, NaN or Inf, a feature out of range or edited twice, lists that do not fit, or a
                transcoder, whose features do not add up to x.

        >>> bool((sae.steer(x, Edit.set(3, 8.0)) != x).any()), bool((sae.steer(x, []) == x).all())
        (True, True)
        """
        if self.manifest.architecture.d_out is not None:
            raise ValueError(
                "this is a transcoder: its features make another activation than they are read from, and cannot edit it"
            )
        flat, shape = self._flat(x)
        rows = finite(flat, lambda row: place_of(row, shape))
        requests, per_request = _requests(edits)
        if per_request and (len(shape) != 2 or len(requests) != shape[0]):
            raise ValueError(
                f"{len(requests)} lists of edits need activations [{len(requests)}, t, d_in], got {[*shape, self.d_in]}"
            )
        feed = as_inputs(requests, self.d_sae)
        batch = rows.reshape(*shape, self.d_in) if per_request else rows[None]
        tokens = {"x": batch}
        if gate is not None:
            tokens["gate"] = gates_of(gate, shape).reshape(*batch.shape[:2], 1)
        tile = max(self._tiler.tile // len(requests), 1)
        out = np.empty_like(batch)
        for begin in range(0, batch.shape[1], tile):
            part = slice(begin, begin + tile)
            feed |= {name: np.ascontiguousarray(array[:, part]) for name, array in tokens.items()}
            (out[:, part],) = self._sessions.run("steer.onnx", feed)
        return out.reshape(*shape, self.d_in)

    def _encoded(self, flat: NDArray[Any], shape: tuple[int, ...], feed: Feed) -> Iterator[Slots]:
        """Slots of activations in memory, [n, d_in], tile by tile."""

        def name_row(row: int) -> str:
            return place_of(row, shape)

        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            return finite(flat[ids[0] : ids[-1] + 1], lambda row: name_row(int(ids[row])))

        return self._slots(rows, len(flat), feed, name_row)

    def _slots(
        self,
        rows: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        tokens: int,
        feed: Feed,
        name_row: Callable[[int], str],
    ) -> Iterator[Slots]:
        """Slots by the served rule, tile by tile, each tile with as many as its own fullest row needs, or more."""
        tiles = tiles_of(np.arange(tokens), self._tiler.tile_for(tokens))
        for ids, slots in zip(tiles, self._tiler.map(self._tiler.all_slots, map(rows, tiles), feed), strict=True):
            refuse_overflow(slots, ids, name_row)
            yield slots

    def _reader(
        self, x: ArrayLike | Read, tokens: int | None, valid: ArrayLike | None
    ) -> tuple[Read, NDArray[np.int64], tuple[int, ...]]:
        """How to read rows by number, the numbers of those that count, and the leading dimensions of all."""
        if not callable(x):
            if tokens is not None:
                raise ValueError("tokens belongs to a function that gives rows; an array of activations has its own")
            flat, shape = self._flat(x)
            ids = np.arange(len(flat)) if valid is None else np.flatnonzero(mask_of(valid, shape))
            return lambda numbers: flat[numbers], ids, shape
        if tokens is None or valid is not None:
            raise ValueError("a function that gives rows needs tokens, their number, and takes no valid mask")

        def read(numbers: NDArray[np.int64]) -> NDArray[Any]:
            flat, shape = self._flat(x(numbers))
            if shape != numbers.shape:
                raise ValueError(
                    f"read gave activations [{', '.join(map(str, shape))}, d_in], expected {len(numbers)} rows"
                )
            return flat

        return read, np.arange(tokens), (tokens,)

    def _feed(self, k: float | None, threshold: ArrayLike | None) -> Feed:
        """Optional inputs of encode.onnx for the options of the served rule."""
        by_threshold = self.manifest.architecture.selection == "threshold"
        feed: Feed = {}
        if k is not None:
            if by_threshold:
                raise ValueError("k belongs to encode_batch or to token choice; this SAE is served by its threshold")
            self._check_k(k)
            feed["slots"] = np.array([int(k)])
        if threshold is not None:
            if not by_threshold:
                raise ValueError("threshold belongs to mutual and feature choice; use k here")
            feed["threshold"] = thresholds_of(threshold, self.d_sae)
        return feed

    def _check_k(self, k: float | None) -> None:
        architecture = self.manifest.architecture
        if k is None:
            return
        if architecture.selection == "groupmax":
            raise ValueError(f"this SAE keeps the largest of each of {architecture.k} groups; its k cannot be changed")
        if not (0 < k <= self.d_sae and (architecture.selection == "threshold" or k == int(k))):
            raise ValueError(f"k must be in (0, d_sae={self.d_sae}] (whole for token choice), got {k:g}")

    def _rows_beside(self, features: Features, x: ArrayLike | None) -> NDArray[np.float32]:
        """The activations [n, d_in] that belong to the features."""
        if x is None:
            raise ValueError(
                "this SAE reconstructs activations with their own help; give decode(features, x) those too"
            )
        flat, shape = self._flat(x)
        if shape != features.shape:
            raise ValueError(f"x is of {list(shape)} tokens, the features of {list(features.shape)}; give theirs")
        return finite(flat, lambda row: place_of(row, shape))

    def _flat(self, x: ArrayLike) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Activations as [n, d_in], of the type that they have, and their leading dimensions."""
        array = np.asarray(x)
        if array.ndim == 0 or array.shape[-1] != self.d_in:
            source = ", ".join(filter(None, (self.manifest.model, self.manifest.hook)))
            raise ValueError(
                f"activations have width {array.shape[-1] if array.ndim else 'none'}, this SAE expects {self.d_in}"
                f"{f' ({source})' if source else ''}; was another layer captured?"
            )
        shape = array.shape[:-1]
        return array.reshape(math.prod(shape), self.d_in), shape


def _requests(edits: Edit | Sequence[Edit] | Sequence[Sequence[Edit]]) -> tuple[list[Sequence[Edit]], bool]:
    """Lists of edits, and whether each is for a request of its own."""
    if isinstance(edits, Edit):
        return [[edits]], False
    if edits and not isinstance(edits[0], Edit):
        return list(edits), True  # type: ignore[arg-type]
    return [list(edits)], False  # type: ignore[arg-type]
