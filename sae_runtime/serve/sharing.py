"""How requests of a bundle are computed together, such that each answer keeps the bits of its request alone."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features, concatenate
from sae_runtime.core.slots import Slots, joined_slots
from sae_runtime.sae import SAE
from sae_runtime.serve.row_lane import Piece
from sae_runtime.serve.tensors import Arrays


@dataclass(frozen=True)
class Rows:
    """Rows that wait to be encoded.

    Attributes:
        x: float32 [n, d_in], finite.
        options: of `SAE.encode`.
        told: what tells other options apart.
    """

    x: NDArray[np.float32]
    options: Mapping[str, Any]
    told: Hashable = None


class Encoding:
    """Encodes rows of several requests at once. A unit is a row.

    Args:
        sae: of the bundle.
        saw: is called with rows that were encoded as fitted, and their slots.
        merges: whether a row keeps its bits among others; else each request is encoded by itself.
    """

    def __init__(self, sae: SAE, saw: Callable[..., None], *, merges: bool) -> None:
        self._sae, self._saw, self._merges = sae, saw, merges
        self.tile = sae.tile

    def kind(self, work: Rows) -> Hashable:
        """Requests with the same options."""
        return work.told if self._merges else id(work)

    def costs(self, work: Rows) -> int | Sequence[int]:
        """A row each; all at once for free, where a request is not cut."""
        return 1 if self._merges else 0

    def run(self, pieces: Sequence[Piece]) -> Sequence[Slots]:
        """The slots of each piece."""
        rows = [work.x[begin:end] for work, begin, end in pieces]
        options = pieces[0][0].options
        x = rows[0] if len(rows) == 1 else np.concatenate(rows)
        indices, values = self._sae.encode_slots(x, **options)
        if not options:
            self._saw(x, indices, values)
        if len(rows) == 1:
            return [(indices, values)]
        return [(indices[part], values[part]) for part in _parts(map(len, rows))]

    def whole(self, work: Rows, parts: Sequence[Slots]) -> Arrays:
        """The slots of a request, as many as its fullest row needs."""
        indices, values = joined_slots(parts)  # copies, so that no caller holds another's rows
        return {"indices": indices, "values": values}


@dataclass(frozen=True)
class Sparse:
    """Features that wait to be decoded, and their activations where the SAE needs them."""

    features: Features
    x: NDArray[np.float32] | None
    slots: int  # of the fullest row


class Decoding:
    """Decodes several requests at once. A unit is a request, or a tile of one that has more rows.

    Args:
        sae: of the bundle.
        merges: whether rows keep their bits among others with as many slots.
    """

    def __init__(self, sae: SAE, *, merges: bool) -> None:
        self._sae, self._merges = sae, merges
        self.tile = sae.decoded_tile

    def units(self, rows: int) -> int:
        """Into how many tiles `SAE.decode` cuts so many rows."""
        return max(-(-rows // self.tile), 1)

    def kind(self, work: Sparse) -> Hashable:
        """Requests with as many slots that are no longer than a tile."""
        return work.slots if self._merges and len(work.features) <= self.tile else id(work)

    def costs(self, work: Sparse) -> int:
        """The rows of a unit."""
        return min(max(len(work.features), 1), self.tile)

    def run(self, pieces: Sequence[Piece]) -> Sequence[NDArray[np.float32]]:
        """The reconstructions of each piece."""
        works = [work for work, _, _ in pieces]
        if len(works) == 1:
            ((work, begin, end),) = pieces
            rows = slice(begin * self.tile, end * self.tile)
            return [self._sae.decode(work.features[rows], None if work.x is None else work.x[rows])]
        lengths = [len(work.features) for work in works]
        features = concatenate([work.features for work in works], self._sae.d_sae, (sum(lengths),))
        x = None if works[0].x is None else np.concatenate([work.x for work in works])
        x_hat = self._sae.decode(features, x)
        return [x_hat[part].copy() for part in _parts(lengths)]

    def whole(self, work: Sparse, parts: Sequence[NDArray[np.float32]]) -> Arrays:
        """The reconstruction of a request."""
        return {"x_hat": parts[0] if len(parts) == 1 else np.concatenate(parts)}


@dataclass(frozen=True)
class Steered:
    """Activations that wait to be edited.

    Attributes:
        x: float32 [b, t, d_in]; of one list of edits [1, n, d_in].
        edits: in plain numbers, one list for each of b.
        gate: float32 [b, t], or None.
        shape: of the answer.
    """

    x: NDArray[np.float32]
    edits: Sequence[Sequence[Edit]]
    gate: NDArray[np.float32] | None
    shape: tuple[int, ...]


class Steering:
    """Edits activations of several requests at once. A unit is one of [b], or a tile of t where these are more rows.

    Args:
        sae: of the bundle.
        merges: whether a request keeps its bits among others with as many tokens and edits.
        padded: the numbers of edits of which requests of one token do so among others with more edits.
    """

    def __init__(self, sae: SAE, *, merges: bool, padded: Collection[int]) -> None:
        self._sae, self._merges, self._padded = sae, merges, padded
        self.tile = sae.tile

    def units(self, work: Steered) -> int:
        """Into how many units a request is cut."""
        return -(-work.x.shape[1] // self._part(work)) if self._is_long(work) else len(work.x)

    def kind(self, work: Steered) -> Hashable:
        """Requests of as many tokens and edits that are no longer than a tile."""
        if not self._merges or self._is_long(work):
            return id(work)
        tokens, most = work.x.shape[1], max(map(len, work.edits))
        pads = tokens == 1 and all(len(edits) in self._padded for edits in work.edits)
        confined = any(edit.only_active for edits in work.edits for edit in edits)
        return tokens, None if pads else most, work.gate is not None, confined

    def costs(self, work: Steered) -> int:
        """The tokens of a unit."""
        return len(work.x) * self._part(work) if self._is_long(work) else max(work.x.shape[1], 1)

    def run(self, pieces: Sequence[Piece]) -> Sequence[NDArray[np.float32]]:
        """The edited activations of each piece."""
        work = pieces[0][0]
        if self._is_long(work):
            ((_, begin, end),) = pieces
            part = self._part(work)
            tokens = slice(begin * part, end * part)
            return [self._steer(work.x[:, tokens], work.edits, None if work.gate is None else work.gate[:, tokens])]
        edits = [one for work, begin, end in pieces for one in work.edits[begin:end]]
        if len(pieces) == 1:
            ((_, begin, end),) = pieces
            gate = None if work.gate is None else work.gate[begin:end]
            return [self._steer(work.x[begin:end], edits, gate)]
        gate = None if work.gate is None else np.concatenate([work.gate[a:b] for work, a, b in pieces])
        y = self._steer(np.concatenate([work.x[a:b] for work, a, b in pieces]), edits, gate)
        return [y[part].copy() for part in _parts(end - begin for _, begin, end in pieces)]

    def whole(self, work: Steered, parts: Sequence[NDArray[np.float32]]) -> Arrays:
        """The edited activations of a request."""
        y = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1 if self._is_long(work) else 0)
        return {"y": y.reshape(work.shape)}

    def _steer(self, x: Any, edits: Any, gate: Any) -> NDArray[np.float32]:
        return self._sae.steer(x, edits, gate=gate)

    def _is_long(self, work: Steered) -> bool:
        """Whether `SAE.steer` cuts a request, between tokens, as is done here."""
        requests, tokens, _ = work.x.shape
        return bool(requests * tokens > self.tile)

    def _part(self, work: Steered) -> int:
        return max(self.tile // len(work.x), 1)


def _parts(lengths: Iterable[int]) -> list[slice]:
    """Slices of so many rows, one behind the other."""
    found, begin = [], 0
    for length in lengths:
        found.append(slice(begin, begin := begin + length))
    return found
