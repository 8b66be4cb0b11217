"""The runtime: features of activations, activations of features, and edits, through onnxruntime."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime import bundle as bundles
from sae_runtime import hub
from sae_runtime.activations import as_float32
from sae_runtime.binding import FixedBatch, T, encode_tensor
from sae_runtime.bundle import Bundle
from sae_runtime.edits import Edit, as_inputs
from sae_runtime.encoder import GPU, GRAPHS, Encoder, Precision, graph_for
from sae_runtime.features import Features, Slots, from_slots, spread
from sae_runtime.joint import encode_joint, limits
from sae_runtime.manifest import Manifest
from sae_runtime.rows import finite, gates_of, mask_of, numbered, place_of, refuse_overflow
from sae_runtime.sessions import CPU, Provider, Sessions

_BELOW = 0.85  # of the threshold; a batch whose cut lies lower is encoded twice
_FREE = 1.5  # times the budget: columns that could take so much hardly bind


def load(
    path: str | Path,
    *,
    precision: Precision = "exact",
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    verify: bool = True,
) -> "SAE":
    """Open an exported bundle.

    Args:
        path: the bundle's folder, or `hf://owner/name[/folder][@revision]` of the Hub.
        precision: how features are computed: "exact", by int8 and float32 where the bundle was exported for it and that
            is quicker (by `sae-runtime tune` or, without, by its size), else and with "float32" by the dense product;
            "float16" and "fast" (int8 alone) only nearly so, at the price that `inspect` shows.
        providers: onnxruntime execution providers, the preferred one first; with options, a pair of name and options.
        threads: threads an operator may use; None means all cores.
        verify: compare every hash and look for numbers that are not finite; without it, sizes and graph hashes only.

    Raises:
        BundleError: the folder is no valid bundle, or was not exported yet, or not for this precision.
        ImportError: onnxruntime is not installed.
        ValueError: a provider is not available here, or an unknown precision.
    """
    bundle = bundles.read(hub.local(path), verify=verify)
    sessions = Sessions(bundle, providers=providers, threads=threads, verify=verify)
    return SAE(bundle, sessions, graph_for(bundle.manifest, sessions, precision))


class SAE:
    """A sparse autoencoder ready to serve, by one of its encoder graphs. Safe to share between threads."""

    def __init__(self, bundle: Bundle, sessions: Sessions, graph: str) -> None:
        self._bundle, self._sessions = bundle, sessions
        self._encoder = Encoder(bundle.manifest, sessions, graph)

    @property
    def manifest(self) -> Manifest:
        """What the SAE is, where it came from and what it measured."""
        return self._bundle.manifest

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.manifest.encoder.d_in

    @property
    def d_out(self) -> int:
        """Width of the reconstruction: d_in, or what a transcoder gives."""
        return self.manifest.encoder.width_out

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.manifest.encoder.d_sae

    @property
    def redone(self) -> tuple[int, int]:
        """Tokens that precision "exact" had to encode in full, and all that it has encoded."""
        return self._encoder.redone

    def encode(
        self,
        x: ArrayLike,
        *,
        rule: Literal["served", "batch"] = "served",
        k: float | None = None,
        theta: ArrayLike | None = None,
        cap: ArrayLike | None = None,
        valid: ArrayLike | None = None,
    ) -> Features:
        """Features of activations.

        Args:
            x: [..., d_in], any real type; cast to float32 once.
            rule: "served" decides every token for itself, by the calibrated threshold or the token's top k; "batch"
                spends one budget over all tokens of x together, as in training. For token choice both are the same.
            k: matches a token, where a rule counts them (token choice, or rule "batch"); None means as fitted.
            theta: the threshold, one number or [d_sae], for the served rule of mutual and feature choice.
            cap: the largest share of the tokens that each feature may match, [d_sae], for the batch rule of feature
                choice; None means as fitted.
            valid: bool [...], for rule "batch": tokens that are False (padding) match nothing and hold no budget.

        Raises:
            ValueError: a wrong width, NaN or Inf (names the row), or an option that the rule does not have.
        """
        flat, shape = self._flat(x)
        by_row = rule == "served" or self.manifest.budget.kind == "token"
        encoder = self.manifest.encoder
        if rule not in ("served", "batch"):
            raise ValueError(f"rule must be 'served' or 'batch', got {rule!r}")
        if valid is not None and rule == "served":
            raise ValueError("valid belongs to rule='batch'; the served rule decides every token for itself")
        if theta is not None and (rule == "batch" or encoder.selection != "threshold"):
            raise ValueError("theta belongs to the served rule of mutual and feature choice; use k here")
        if cap is not None and by_row:
            raise ValueError("cap belongs to rule='batch' of feature choice")
        if k is not None and by_row and encoder.selection == "threshold":
            raise ValueError("k belongs to rule='batch' or to token choice; the served rule here has theta")
        if k is not None and encoder.selection == "groupmax":
            raise ValueError(f"this SAE keeps the largest of each of {encoder.k} groups; its k cannot be changed")
        if k is not None and not (0 < k <= self.d_sae and (not by_row or k == int(k))):
            raise ValueError(f"k must be in (0, d_sae={self.d_sae}] (whole for token choice), got {k:g}")
        tokens = np.arange(len(flat)) if valid is None else np.flatnonzero(mask_of(valid, shape))

        def place(row: int) -> str:
            return place_of(int(tokens[row]), shape)

        if not by_row:
            features = self.encode_batch(lambda ids: flat[tokens[ids]], len(tokens), k=k, cap=cap, place=place)
            return spread(features, tokens, shape)
        feed: dict[str, NDArray[Any]] = {}
        if k is not None:
            feed["width"] = np.array([int(k)])
        if theta is not None:
            feed["theta"] = self._theta(theta)

        tile = self._encoder.tiles(len(tokens))
        begins = range(0, len(tokens), tile)

        def parts() -> Iterator[Slots]:  # one after the other: slots are as wide as their tile's fullest token
            rows = (finite(flat[tokens[begin : begin + tile]], begin, place) for begin in begins)
            for begin, slots in zip(begins, self._encoder.each(self._encoder.all_slots, rows, feed), strict=True):
                refuse_overflow(slots, begin, place)
                yield slots

        return spread(from_slots(parts(), self.d_sae, (len(tokens),)), tokens, shape)

    def encode_tensor(self, x: T) -> tuple[T, T]:
        """Features of a tensor of torch, CuPy or numpy by the served rule, on its device and without copies.

        On a GPU encode_gpu.onnx computes them where the bundle has it, and encode.onnx where not.

        Args:
            x: float32 [n, d_in], contiguous, on the device of the preferred provider. Of a row that is not finite,
                nothing is said.

        Returns:
            Indices i64 and values f32 [n, width], tensors of the same kind: the manifest's width, a row by falling
            value, unused slots 0. Where a threshold fills a row's last slot, the row may have been cut.

        Raises:
            ImportError: onnxruntime is older than 1.27, which has no DLPack.
            ValueError: x is not such a tensor.
        """
        graph = GPU if self._encoder.graph == GPU else GRAPHS["float32"]
        return encode_tensor(self._sessions, self.manifest, graph, x)

    def fixed_batch(self, x: T) -> FixedBatch[T]:
        """Room for batches of one size, encoded again and again as one captured CUDA graph; see `FixedBatch`."""
        return FixedBatch(self._sessions, self.manifest, x)

    def encode_batch(
        self,
        read: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        tokens: int,
        *,
        k: float | None = None,
        cap: ArrayLike | None = None,
        place: Callable[[int], str] = str,
    ) -> Features:
        """Features by the batch rule of mutual or feature choice, of activations that need not fit in memory.

        Args:
            read: gives rows by their numbers, ascending: [len(ids), d_in], any real type; `Activations.rows` does. It
                is asked for each row once, and again for one that has far more features than most.
            tokens: how many rows there are; they share one budget.
            k: as in `encode`.
            cap: as in `encode`.
            place: what a message calls a row.

        Returns:
            Features [tokens]; the same bits as `encode` of all rows at once.

        Raises:
            ValueError: as `encode`; the bundle is of token choice; or `read` gives other rows than it was asked for.
        """
        allocation = self.manifest.budget
        if k is not None and not 0 < k <= self.d_sae:
            raise ValueError(f"k must be in (0, d_sae={self.d_sae}], got {k:g}")
        k = allocation.k if k is None else k
        budget, limit = limits(allocation, self.d_sae, tokens, k=k, cap=cap)
        # As many slots as hold nearly every token at this k, and room for what columns refuse.
        width = math.ceil(max(2 * k, self.manifest.width * k / allocation.k))

        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            flat, shape = self._flat(read(ids))
            if shape != ids.shape:
                raise ValueError(
                    f"read gave activations [{', '.join(map(str, shape))}, d_in], expected {len(ids)} rows"
                )
            return finite(flat, 0, partial(numbered, place, ids))

        def latents(tiles: Sequence[NDArray[np.int64]], theta: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
            feed = {"theta": theta, "width": np.array([min(4 * width if whole else width, self.d_sae)])}
            encode = self._encoder.plain if from_tiles else self._encoder.slots
            if whole:
                encode = partial(self._encoder.all_slots, plain=True)
            for ids, slots in zip(tiles, self._encoder.each(encode, map(rows, tiles), feed), strict=True):
                refuse_overflow(slots, 0, partial(numbered, place, ids))
                yield slots

        floor = self._floor(budget, limit, tokens) if k <= allocation.k else 0.0
        # Whether "exact" is certain of a row depends on theta, and where that follows from other tiles, its bits would.
        from_tiles = floor == 0 and self._encoder.graph == GRAPHS["exact"]
        tile = self._encoder.tile if from_tiles else self._encoder.tiles(tokens)
        return encode_joint(latents, tokens, self.d_sae, budget=budget, limit=limit, tile=tile, floor=floor)

    def _floor(self, budget: int, limit: NDArray[np.int64] | None, tokens: int) -> float:
        """What matches of a batch like those of training lie above: somewhat below the served threshold."""
        if self._encoder.graph in (GRAPHS["float32"], GPU):
            return 0.0  # the dense product costs the same from any bound on
        if limit is not None and int(np.minimum(limit, tokens).sum()) < _FREE * budget:
            return 0.0  # the columns decide, which the threshold says little of
        # Of feature choice, the common cut: where a feature has a lower one, the batch rule knows nothing of it.
        thresholds, features = np.unique(self._bundle.tensor("threshold"), return_counts=True)
        return _BELOW * float(thresholds[features.argmax()])

    def decode(self, features: Features, x: ArrayLike | None = None) -> NDArray[np.float32]:
        """Activations that the features stand for: float32 [*features.shape, d_out].

        Args:
            features: of any activations.
            x: those activations, [*features.shape, d_in], for an SAE that takes their mean and size off them or sends
                them past the features too; `manifest.encoder` says so, and others have no use for them.

        Raises:
            ValueError: the features are of an SAE with another number of features, or x is missing, or of another
                shape or not finite where it is needed.
        """
        if features.d_sae != self.d_sae:
            raise ValueError(
                f"features of an SAE with {features.d_sae}, this one has {self.d_sae}; encode with this one"
            )
        rows = self._rows_beside(features, x) if self.manifest.encoder.decodes_with_x else None
        tile = max(self._encoder.tile // 4, 1)  # decoding gathers a row of W_dec for every match
        out = np.empty((len(features), self.d_out), np.float32)
        for begin in range(0, len(features), tile):
            end = min(begin + tile, len(features))
            indices, values = features.to_slots(begin, end)
            feed: dict[str, NDArray[Any]] = {"indices": indices, "values": values}
            if rows is not None:
                feed["x"] = rows[begin:end]
            (out[begin:end],) = self._sessions.run("decode.onnx", feed)
        return out.reshape(*features.shape, self.d_out)

    def _rows_beside(self, features: Features, x: ArrayLike | None) -> NDArray[np.float32]:
        if x is None:
            raise ValueError(
                "this SAE reconstructs activations with their own help; give decode(features, x) those too"
            )
        flat, shape = self._flat(x)
        if shape != features.shape:
            raise ValueError(f"x is of {list(shape)} tokens, the features of {list(features.shape)}; give theirs")
        return finite(flat, 0, lambda row: place_of(row, shape))

    def steer(
        self, x: ArrayLike, edits: Sequence[Edit] | Sequence[Sequence[Edit]], *, gate: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Activations with some features edited and all else kept, what the SAE cannot explain included.

        Args:
            x: [..., d_in].
            edits: one list for all tokens, or, for x [b, t, d_in], a list for each of the b requests.
            gate: how much of the edit each token gets, broadcastable to [...]; None means 1 everywhere.

        Returns:
            float32 [..., d_in]; equal to x where there are no edits.

        Raises:
            ValueError: a wrong width, NaN or Inf, a feature out of range or edited twice, lists that do not fit, or a
                transcoder, whose features do not add up to x.
        """
        if self.manifest.encoder.d_out is not None:
            raise ValueError(
                "this is a transcoder: its features make another activation than they are read from, and cannot edit it"
            )
        flat, shape = self._flat(x)
        rows = finite(flat, 0, lambda row: place_of(row, shape))
        per_request = bool(edits) and not isinstance(edits[0], Edit)
        if per_request and (len(shape) != 2 or len(edits) != shape[0]):
            raise ValueError(
                f"{len(edits)} lists of edits need activations [{len(edits)}, t, d_in], got {[*shape, self.d_in]}"
            )
        requests = list(edits) if per_request else [list(edits)]
        feed = as_inputs(requests, self.d_sae)  # type: ignore[arg-type]
        batch = rows.reshape(*shape, self.d_in) if per_request else rows[None]
        tokens = {"x": batch}
        if gate is not None:
            tokens["gate"] = gates_of(gate, shape).reshape(*batch.shape[:2], 1)
        tile = max(self._encoder.tile // len(requests), 1)
        out = np.empty_like(batch)
        for begin in range(0, batch.shape[1], tile):
            part = slice(begin, begin + tile)
            feed |= {name: np.ascontiguousarray(array[:, part]) for name, array in tokens.items()}
            (out[:, part],) = self._sessions.run("steer.onnx", feed)
        return out.reshape(*shape, self.d_in)

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

    def _theta(self, theta: ArrayLike) -> NDArray[np.float32]:
        array = np.atleast_1d(as_float32(theta))
        if array.shape not in ((1,), (self.d_sae,)) or not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"theta must be one number or {self.d_sae}, finite and >= 0, got shape {array.shape}")
        return array
