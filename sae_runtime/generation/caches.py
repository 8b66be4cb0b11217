"""Keys and values of running requests, in the two ways in which graphs take and give them."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.deployed.host_inputs import Past
from sae_runtime.generation.binding import Binding, value_of

_STEP = 128  # tokens by which blocks grow at least


Interventions = tuple[Any, dict[str, NDArray[Any]]]
"""What a run asked of the SAEs, and the inputs that say so, which the next run may use again."""


class Rows:
    """For graphs of GroupQueryAttention: each request's tokens stand from the start of its row.

    The operator takes the length of each row from the mask, and writes behind it. Past and present are the same
    memory, so a step copies nothing. What stands behind a row's length is never read.
    """

    def __init__(self, entries: Sequence[Past], requests: int = 1) -> None:
        self.entries = entries
        self.lengths = np.zeros(requests, np.int64)
        self._blocks = [_zeros(entry, requests, 0) for entry in entries]
        self.interventions: Interventions | None = None
        self._binding: Binding | None = None  # until the requests or the blocks are others
        self._names: tuple[str, ...] = ()

    def mask(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The attention mask of a run that reads so many tokens of each request [b], i64 [b, past + new]."""
        lengths = self.lengths + counts
        return (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)

    def bind(self, session: Any, counts: NDArray[np.int64], names: Collection[str]) -> Binding:
        """What a run is bound to that reads tokens: its past, and the places for its present.

        Args:
            session: an onnxruntime InferenceSession.
            counts: number of tokens of each request.
            names: of the other inputs and outputs of the run. An input stays bound, so other names need a new binding.
        """
        self._reserve(len(self.lengths), int((self.lengths + counts).max()))
        if self._binding is None or self._names != tuple(names):
            self._binding, self._names = Binding(session), tuple(names)
            for entry, block in zip(self.entries, self._blocks, strict=True):
                self._binding.in_place(entry.port.name, entry.present, block[: len(self.lengths)])
        return self._binding

    def keep(self, counts: NDArray[np.int64]) -> None:
        """Take what the run gave, which is in place already."""
        self.lengths = self.lengths + counts

    def join(self, other: "Rows") -> None:
        """Put the requests of another cache behind those of this one."""
        old, lengths = len(self.lengths), np.concatenate([self.lengths, other.lengths])
        self._reserve(len(lengths), int(lengths.max()))  # without memory for it, this cache stays as it is
        self.lengths, self._binding = lengths, None
        for block, more in zip(self._blocks, other._blocks, strict=True):
            tokens = int(other.lengths.max())
            block[old : len(self.lengths), :, :tokens] = more[: len(other.lengths), :, :tokens]

    def leave(self, rows: Sequence[int]) -> None:
        """Drop requests; those behind them move up."""
        kept = np.delete(np.arange(len(self.lengths)), rows)
        for row, old in enumerate(kept.tolist()):
            if row != old:
                tokens = int(self.lengths[old])
                for block in self._blocks:
                    block[row, :, :tokens] = block[old, :, :tokens]
        self.lengths, self._binding = self.lengths[kept], None

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make the blocks large enough, by half more than they were at least."""
        had, had_tokens = self._blocks[0].shape[0], self._blocks[0].shape[2]
        if rows <= had and tokens <= had_tokens:
            return
        self._binding = None
        rows = had if rows <= had else max(rows, had + had // 2)
        if tokens > had_tokens:
            tokens = max(tokens, had_tokens + had_tokens // 2) + _STEP
        tokens = max(tokens, had_tokens)
        larger = [_zeros(entry, rows, tokens) for entry in self.entries]
        for number, block in enumerate(self._blocks):
            larger[number][:had, :, :had_tokens] = block
            self._blocks[number] = larger[number]


class Columns:
    """For graphs that put new keys behind the past: each request's tokens stand at the end of its row.

    A shorter row is padded at its beginning, so the new column is next to the last one in each row. The present of a
    step is the past of the next one as it is; only who joins and leaves costs a copy. Prompts of different lengths are
    read with padding behind them, which no token of theirs sees, and then moved.
    """

    def __init__(self, entries: Sequence[Past], requests: int = 1) -> None:
        self.entries = entries
        self.lengths = np.zeros(requests, np.int64)
        self._pasts = [value_of(_zeros(entry, requests, 0)) for entry in entries]
        self.interventions: Interventions | None = None
        self._binding: Binding | None = None  # of the last run

    def mask(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Rows.mask`; only the first run may read different numbers of tokens."""
        past, new = int(self.lengths.max()), int(counts.max())
        first = past - self.lengths[:, None]
        columns = np.arange(past + new)
        return ((columns >= first) & (columns < past + counts[:, None])).astype(np.int64)

    def bind(self, session: Any, counts: NDArray[np.int64], names: Collection[str]) -> Binding:
        """As `Rows.bind`; the run makes the places for the present."""
        self._binding = Binding(session)
        for entry, past in zip(self.entries, self._pasts, strict=True):
            self._binding.feed_value(entry.port.name, past)
            self._binding.ask(entry.present)
        return self._binding

    def keep(self, counts: NDArray[np.int64]) -> None:
        """Take what the run gave."""
        assert self._binding is not None
        values = self._binding.values()
        self._pasts = [values[entry.present] for entry in self.entries]
        self.lengths = self.lengths + counts
        columns = int(counts.max())
        if (counts == columns).all():
            return
        for number, (entry, past) in enumerate(zip(self.entries, self._pasts, strict=True)):
            array, moved = past.numpy(), _zeros(entry, len(counts), columns)
            for row, count in enumerate(counts.tolist()):
                moved[row, :, columns - count :] = array[row, :, :count]
            self._pasts[number] = value_of(moved)

    def join(self, other: "Columns") -> None:
        """As `Rows.join`."""
        lengths = np.concatenate([self.lengths, other.lengths])
        columns = int(lengths.max())
        places = [_zeros(entry, len(lengths), columns) for entry in self.entries]  # as in `Rows.join`
        for number, (joined, *pasts) in enumerate(zip(places, self._pasts, other._pasts, strict=True)):
            row = 0
            for past in pasts:
                array = past.numpy()
                joined[row : row + len(array), :, columns - array.shape[2] :] = array
                row += len(array)
            self._pasts[number] = value_of(joined)
        self.lengths = lengths

    def leave(self, rows: Sequence[int]) -> None:
        """As `Rows.leave`."""
        kept = np.delete(np.arange(len(self.lengths)), rows)
        self.lengths = self.lengths[kept]
        longest = int(self.lengths.max(initial=0))
        for number, past in enumerate(self._pasts):
            array = past.numpy()
            self._pasts[number] = value_of(np.ascontiguousarray(array[kept][:, :, array.shape[2] - longest :]))


def _zeros(entry: Past, rows: int, tokens: int) -> NDArray[Any]:
    """Keys or values [b, heads, t, width]; memory is taken when it is written."""
    _, heads, _, width = entry.empty
    return np.zeros((rows, heads, tokens, width), entry.port.dtype)
