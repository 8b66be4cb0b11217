"""Token windows: documents cut to what a model reads at once, in shards by their rows and in batches by their length.

A row is a token whose activation is kept. Windows never join documents.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOCUMENTS_AT_ONCE = 64  # tokenizers run in parallel over a list


@dataclass(frozen=True)
class Window:
    """Tokens that one document gives to one forward pass; arrays are [time].

    `ids` are int32, `positions` int32 count the document's tokens from 0, and `kept` is False where a special token's
    activation is left out. A special token that frames the window has the position of the text's token next to it.
    """

    document: int
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    kept: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """Number of tokens kept."""
        return int(np.count_nonzero(self.kept))


def windows(tokenizer: Any, texts: Iterable[str], *, context: int, special: bool) -> Iterator[Window]:
    """Windows of at most `context` tokens, in the order of the texts, each framed as the tokenizer frames a text.

    Args:
        tokenizer: of transformers.
        texts: documents; one without a token to keep gives no window, but its number is used up.
        context: tokens per window, those of the frame included.
        special: keep special tokens. A word unknown to the tokenizer is no special token.

    Raises:
        ValueError: the frame leaves no room in `context`.
    """
    frame: tuple[list[int], list[int]] | None = None
    specials = _special_ids(tokenizer)
    for document, text, ids in _tokenized(tokenizer, texts):
        if not ids:
            continue
        if frame is None:
            frame = _frame(tokenizer, text, ids)
        before, after = frame
        room = context - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"context is {context} tokens, of which special tokens take {len(before) + len(after)}; "
                f"give at least {len(before) + len(after) + 1}"
            )
        for start in range(0, len(ids), room):
            body = ids[start : start + room]
            positions = np.arange(start - len(before), start + len(body) + len(after), dtype=np.int32)
            framed = np.array([*before, *body, *after], np.int32)
            ordinary = ~np.isin(framed, specials)
            ordinary[: len(before)] = ordinary[len(before) + len(body) :] = False
            window = Window(
                document,
                framed,
                positions.clip(start, start + len(body) - 1),
                ordinary | special,
            )
            if window.rows:
                yield window


def first_rows(parts: Iterable[Window], rows: int | None) -> Iterator[Window]:
    """The windows up to the one that holds row number `rows`, which keeps no more; None: all of them."""
    if rows is None:
        yield from parts
        return
    left = rows
    for window in parts:
        if window.rows >= left:
            # The whole window still goes through the model: its tokens may look ahead.
            yield replace(window, kept=window.kept & (np.cumsum(window.kept) <= left))
            return
        left -= window.rows
        yield window


def groups(parts: Iterable[Window], rows: int) -> Iterator[list[Window]]:
    """Runs of windows with at most `rows` rows each, or one window with more."""
    group: list[Window] = []
    held = 0
    for window in parts:
        if group and held + window.rows > rows:
            yield group
            group, held = [], 0
        group.append(window)
        held += window.rows
    if group:
        yield group


def batches(group: Sequence[Window], tokens: int) -> Iterator[list[int]]:
    """Numbers of the windows that go through the model together: at most `tokens` when padded, or one window."""
    # Longest first, so that too large a batch fails at once.
    order = sorted(range(len(group)), key=lambda number: -len(group[number].ids))
    at = 0
    while at < len(order):
        size = max(1, tokens // len(group[order[at]].ids))
        yield order[at : at + size]
        at += size


def padded(batch: Sequence[Window], pad: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Ids filled up on the right with `pad`, where they are tokens, and which are kept: each [batch, time]."""
    shape = len(batch), max(len(window.ids) for window in batch)
    ids, real, kept = np.full(shape, pad, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        real[row, : len(window.ids)] = True
        kept[row, : len(window.ids)] = window.kept
    return ids, real, kept


def origin(group: Sequence[Window]) -> dict[str, NDArray[np.int32]]:
    """Where the rows of the windows come from: `tokens`, `documents` and `positions`, int32 [n] each."""
    documents = np.array([window.document for window in group], np.int32)
    return {
        "tokens": np.concatenate([window.ids[window.kept] for window in group]),
        "documents": documents.repeat([window.rows for window in group]),
        "positions": np.concatenate([window.positions[window.kept] for window in group]),
    }


def _special_ids(tokenizer: Any) -> list[int]:
    """Ids of special tokens, less the one for unknown words where it means nothing else: that is text."""
    named = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep", "pad", "mask")}
    return [number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id or number in named]


def _tokenized(tokenizer: Any, texts: Iterable[str]) -> Iterator[tuple[int, str, list[int]]]:
    numbered = enumerate(texts)
    while part := list(islice(numbered, _DOCUMENTS_AT_ONCE)):
        encoded = tokenizer(
            [text for _, text in part],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a text longer than the model's window is expected
        )
        for (number, text), ids in zip(part, encoded["input_ids"], strict=True):
            yield number, text, ids


def _frame(tokenizer: Any, text: str, ids: list[int]) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after the ids of a text."""
    framed = tokenizer(text, verbose=False)["input_ids"]
    for before in range(len(framed) - len(ids) + 1):
        if framed[before : before + len(ids)] == ids:
            return framed[:before], framed[before + len(ids) :]
    raise ValueError(
        f"{type(tokenizer).__name__} changes a text's tokens when it adds special ones; "
        "use the model with another tokenizer"
    )
