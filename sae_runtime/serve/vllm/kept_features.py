"""Features that wait for their callers, by ticket and request."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.core.features import Features, concatenate, from_slots
from sae_runtime.serve.vllm.packed_rows import Rows

_ANY = int(np.iinfo(np.int32).max)  # features: the SAE's number is known to who takes them


@dataclass(frozen=True)
class Piece:
    """Features of tokens of one request that stand one behind the other.

    Attributes:
        sae: name of the SAE.
        position: of the first token in its request.
        indices: [t, k]; or where `counts` is given, of all tokens, [m].
        values: float32, of the same shape; 0 where a place holds no feature.
        counts: of the features of each token, [t].
    """

    sae: str
    position: int
    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    counts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.indices) if self.counts is None else len(self.counts)

    def features(self) -> Features:
        """The features of the tokens, of shape (t,)."""
        if self.counts is None:
            return from_slots([(self.indices, self.values)], _ANY, (len(self),))
        indptr = np.append(0, np.cumsum(self.counts))
        return Features(indptr, self.indices.astype(np.int32), self.values, _ANY, (len(self),))


@dataclass
class _Request:
    plan: Mapping[str, Any]
    child: int
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)


class KeptFeatures:
    """Keeps features of requests until they are taken, or until too many tokens wait and they are the oldest.

    Args:
        most: tokens that are kept.

    >>> kept = KeptFeatures(most=10)
    >>> kept.open("r-1", {"ticket": "t", "request": "r", "answers": 1})
    >>> kept.add("r-1", Piece("mine", 0, np.array([[4, 2]]), np.array([[3, 0]], np.float32)))
    >>> np.frombuffer(kept.take(["t"])["t"]["r"][0]["mine"]["indices"], np.int32)
    array([4], dtype=int32)
    """

    def __init__(self, most: int) -> None:
        self._most, self._tokens = most, 0
        self._requests: OrderedDict[str, _Request] = OrderedDict()  # by the engine's id, oldest first

    def open(self, request: str, plan: Mapping[str, Any]) -> None:
        """Begin to keep a request's features; one that was preempted goes on."""
        if request not in self._requests:
            child = int(request.partition("_")[0]) if plan["answers"] > 1 else 0
            self._requests[request] = _Request(plan, child)

    def add(self, request: str, piece: Piece) -> None:
        """Keep a piece, if the request is still kept."""
        if (one := self._requests.get(request)) is None:
            return
        one.pieces.append(piece)
        one.tokens += len(piece)
        self._tokens += len(piece)
        while self._tokens > self._most:
            self._forget(next(iter(self._requests)))

    def take(self, tickets: Sequence[str]) -> dict[str, Any]:
        """The features of tickets, which are kept no longer: of each request and each of its answers, by SAE.

        Where a token was read twice, as after a preemption, the last reading counts.

        Returns:
            Plain values: bytes of positions int32 [t], indptr int64 [t + 1], indices int32 and values float32.
        """
        found: dict[str, Any] = {ticket: {} for ticket in tickets}
        for number, one in list(self._requests.items()):
            if (ticket := one.plan["ticket"]) in found:
                answers = found[ticket].setdefault(one.plan["request"], {})
                answers[one.child] = {
                    sae: _joined([piece for piece in one.pieces if piece.sae == sae])
                    for sae in dict.fromkeys(piece.sae for piece in one.pieces)
                }
                self._forget(number)
        return found

    def drop(self, tickets: Sequence[str]) -> None:
        """Keep the features of tickets no longer."""
        for number in [number for number, one in self._requests.items() if one.plan["ticket"] in tickets]:
            self._forget(number)

    def _forget(self, request: str) -> None:
        self._tokens -= self._requests.pop(request).tokens


@dataclass(frozen=True)
class Reading:
    """What an SAE reads in a pass, still on the model's device.

    Attributes:
        sae: its name.
        indices: of the strongest features of each row, [n, k]; or where `counts` is given, of all of them, [m].
        values: of these, float32.
        parts: of each request its rows, one after the other, and how many features of each it wants; None: all.
        counts: of the features of each row, [n].
    """

    sae: str
    indices: Tensor
    values: Tensor
    parts: Sequence[tuple[Rows, int | None]]
    counts: Tensor | None = None

    def keep(self, kept: KeptFeatures) -> None:
        """Keep the features of each request apart. This waits for the device."""
        indices, values, start = self.indices.cpu().numpy(), self.values.cpu().numpy(), 0
        ends = None if self.counts is None else np.append(0, np.cumsum(self.counts.cpu().numpy()))
        for rows, most in self.parts:
            end = start + rows.count
            if ends is None:
                part: Any = slice(start, end), slice(most)
            else:
                part = slice(ends[start], ends[end])
            counts = None if ends is None else np.diff(ends[start : end + 1])
            kept.add(rows.request, Piece(self.sae, rows.position, indices[part].copy(), values[part].copy(), counts))
            start = end


def _joined(pieces: Sequence[Piece]) -> dict[str, bytes]:
    """The features of pieces of one request, each position once and in order."""
    positions = np.concatenate([np.arange(one.position, one.position + len(one)) for one in pieces])
    features = concatenate([one.features() for one in pieces], _ANY, (len(positions),))
    places, last = np.unique(positions[::-1], return_index=True)
    features = features.take(len(positions) - 1 - last)
    return {
        "positions": places.astype(np.int32).tobytes(),
        "indptr": features.indptr.tobytes(),
        "indices": features.indices.tobytes(),
        "values": features.values.tobytes(),
    }
