"""Windows of tokens: parts of documents that a model can read at once, and their groups for shards and batches.

A row is a token whose activation is kept. A window has tokens of one document.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.documents import Document, Source
from sae_runtime.activations.framing import cuts, room

_DOCUMENTS_AT_ONCE = 64  # tokenizers process the texts of a list in parallel
_SAMPLE = 64  # ids whose text shows which special tokens the tokenizer puts around a text


@dataclass(frozen=True)
class Window:
    """Tokens of one document for one forward pass.

    Attributes:
        document: number of the document.
        ids: of the tokens, [time].
        positions: numbers of the tokens in the document, from 0, [time]. A special token before or after the text has
            the position of the text's nearest token.
        kept: whether the token's activation is kept, [time].
        source: where the document stands.
    """

    document: int
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    kept: NDArray[np.bool_]
    source: Source | None = None

    @property
    def rows(self) -> int:
        """Number of kept tokens."""
        return int(np.count_nonzero(self.kept))


def windows(
    tokenizer: Any,
    documents: Iterable[Document],
    *,
    context: int,
    special: bool,
    skip_first: int = 0,
    skip_ids: Sequence[int] = (),
) -> Iterator[Window]:
    """Windows of at most `context` tokens, in the order of the documents.

    Each window gets the special tokens that the tokenizer puts before and after a text, the frame. If a document gives
    its token ids, a frame and padding at their ends are dropped first.

    Args:
        tokenizer: a tokenizer of transformers.
        documents: texts or token ids. A document without tokens to keep counts, but has no window.
        context: largest number of tokens of a window, with the frame.
        special: keep the activations of special tokens. The token for unknown words is not a special token.
        skip_first: number of tokens at the start of each window whose activations are not kept, special ones counted.
        skip_ids: ids of tokens whose activations are not kept.

    Raises:
        ValueError: the frame leaves no room in `context`, the tokenizer changes a text's tokens when it adds it, or it
            has no token of an id.
    """
    frame: tuple[list[int], list[int]] | None = None
    specials = _special_ids(tokenizer)
    for number, document, ids in _tokenized(tokenizer, documents):
        if not ids:
            continue
        if frame is None:
            frame = _frame(tokenizer, document, ids)
            room(context, len(frame[0]) + len(frame[1]))
        if not isinstance(document.content, str):
            ids = _bare(tokenizer, ids, frame)
        for window in _cut(number, ids, frame, context):
            window = replace(window, source=document.source)
            if special:
                window = replace(window, kept=np.ones_like(window.kept))
            else:
                window = replace(window, kept=window.kept & ~np.isin(window.ids, specials))
            if skip_first or skip_ids:
                late = np.arange(len(window.ids)) >= skip_first
                window = replace(window, kept=window.kept & late & ~np.isin(window.ids, skip_ids))
            if window.rows:
                yield window


def _cut(document: int, ids: list[int], frame: tuple[list[int], list[int]], context: int) -> Iterator[Window]:
    """A document's tokens in windows with frames; the tokens of the frames are not kept."""
    before, after = frame
    for cut in cuts(len(ids), len(before), len(after), context):
        framed = np.array([*before, *ids[cut.start : cut.stop], *after], np.int32)
        yield Window(document, framed, cut.positions, cut.inside)


def first_rows(parts: Iterable[Window], rows: int | None) -> Iterator[Window]:
    """The first windows, up to `rows` rows; all windows if `rows` is None. The last window keeps the rest.

    >>> three = [Window(0, np.arange(n), np.arange(n), np.ones(n, np.bool_)) for n in (4, 3, 9)]
    >>> [window.rows for window in first_rows(three, 6)]
    [4, 2]
    """
    if rows is None:
        yield from parts
        return
    left = rows
    for window in parts:
        if window.rows >= left:
            # The window keeps its tokens, because earlier tokens may attend to later ones.
            yield replace(window, kept=window.kept & (np.cumsum(window.kept) <= left))
            return
        left -= window.rows
        yield window


def groups(parts: Iterable[Window], rows: int) -> Iterator[list[Window]]:
    """Consecutive windows in groups of at most `rows` rows. A window with more rows is a group alone.

    >>> three = [Window(0, np.arange(n), np.arange(n), np.ones(n, np.bool_)) for n in (4, 3, 9)]
    >>> [[window.rows for window in group] for group in groups(three, rows=8)]
    [[4, 3], [9]]
    """
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
    """The numbers of the windows of each batch: a batch has at most `tokens` tokens with padding, or one window.

    >>> three = [Window(0, np.arange(n), np.arange(n), np.ones(n, np.bool_)) for n in (4, 3, 9)]
    >>> list(batches(three, tokens=8))
    [[2], [0, 1]]
    """
    # The longest windows come first, so that a batch that needs too much memory fails at once.
    order = sorted(range(len(group)), key=lambda number: -len(group[number].ids))
    begin = 0
    while begin < len(order):
        size = max(1, tokens // len(group[order[begin]].ids))
        yield order[begin : begin + size]
        begin += size


def padded(
    batch: Sequence[Window], pad: int, multiple: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The ids, padded on the right with `pad`, a mask of real tokens, and a mask of kept tokens: [batch, time] each.

    The time is the least multiple of `multiple` that holds the longest window.
    """
    shape = len(batch), -(-max(len(window.ids) for window in batch) // multiple) * multiple
    ids, real, kept = np.full(shape, pad, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        real[row, : len(window.ids)] = True
        kept[row, : len(window.ids)] = window.kept
    return ids, real, kept


def origin(group: Sequence[Window]) -> dict[str, NDArray[np.int32]]:
    """The token, document and position of each row: `tokens`, `documents` and `positions`, int32 [n] each."""
    documents = np.array([window.document for window in group], np.int32)
    return {
        "tokens": np.concatenate([window.ids[window.kept] for window in group]),
        "documents": documents.repeat([window.rows for window in group]),
        "positions": np.concatenate([window.positions[window.kept] for window in group]),
    }


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of tokens that are given as ids or as texts, such as "50256" and "<|im_start|>".

    Raises:
        ValueError: the tokenizer does not have such an id, or a text is not one token.
    """
    return tuple(dict.fromkeys(_token_id(tokenizer, token) for token in tokens))


def _token_id(tokenizer: Any, token: str) -> int:
    if token.isdecimal():
        if int(token) < len(tokenizer):
            return int(token)
        raise ValueError(f"the tokenizer has ids 0 to {len(tokenizer) - 1}, got the token {token}; name one of these")
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    ids = tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    raise ValueError(f"{token!r} is not one token of this tokenizer; give the text of one token, or its id")


def _special_ids(tokenizer: Any) -> list[int]:
    """The ids of special tokens. The token for unknown words is one of them only if it has another role too."""
    named = _role_ids(tokenizer, "bos", "eos", "cls", "sep", "pad", "mask")
    return [number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id or number in named]


def _role_ids(tokenizer: Any, *roles: str) -> set[int | None]:
    return {getattr(tokenizer, f"{role}_token_id") for role in roles}


def _tokenized(tokenizer: Any, documents: Iterable[Document]) -> Iterator[tuple[int, Document, list[int]]]:
    """The number, the document and the ids of each document; the ids of a text are without special tokens."""
    numbered = enumerate(documents)
    largest: int | None = None
    while part := list(islice(numbered, _DOCUMENTS_AT_ONCE)):
        texts = [document.content for _, document in part if isinstance(document.content, str)]
        ids_of_texts = iter(_ids(tokenizer, texts) if texts else [])
        for number, document in part:
            if isinstance(document.content, str):
                yield number, document, next(ids_of_texts)
                continue
            largest = max(tokenizer.get_vocab().values()) if largest is None else largest
            if document.content.max(initial=0) > largest:
                raise ValueError(
                    f"{document.source}: token id {document.content.max()}, the tokenizer has ids up to {largest}; "
                    "take the column that this model's tokenizer made"
                )
            yield number, document, document.content.tolist()


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about texts that are longer than the model's context
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _frame(tokenizer: Any, document: Document, ids: list[int]) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after the ids of a text."""
    text = document.content
    if not isinstance(text, str):  # any text shows the frame
        text = tokenizer.decode(ids[:_SAMPLE], skip_special_tokens=True).strip() or "a"
        ids = _ids(tokenizer, [text])[0]
        if not ids:
            raise ValueError(f"{document.source}: the tokenizer makes no text of the token ids; give texts instead")
    framed = tokenizer(text, verbose=False)["input_ids"]
    for before in range(len(framed) - len(ids) + 1):
        if framed[before : before + len(ids)] == ids:
            return framed[:before], framed[before + len(ids) :]
    raise ValueError(
        f"{type(tokenizer).__name__} changes a text's tokens when it adds special ones; "
        "use the model with another tokenizer"
    )


def _bare(tokenizer: Any, ids: list[int], frame: tuple[list[int], list[int]]) -> list[int]:
    """Given ids without padding and without a frame. A padding token that has another role too is kept."""
    before, after = frame
    pad = tokenizer.pad_token_id
    begin, end = 0, len(ids)
    if pad is not None and pad not in _role_ids(tokenizer, "bos", "eos", "cls", "sep", "mask", "unk"):
        while begin < end and ids[begin] == pad:
            begin += 1
        while begin < end and ids[end - 1] == pad:
            end -= 1
    if before and ids[begin : min(begin + len(before), end)] == before:
        begin += len(before)
    if after and ids[max(end - len(after), begin) : end] == after:
        end -= len(after)
    return ids[begin:end]
