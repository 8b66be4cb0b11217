"""Tokens of one text, and the cuts that make them fit a model's context."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.framing import cuts, room

_UNKNOWN = 2048  # tokens of a window, where nothing tells what the model reads


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, or of one window of it.

    Attributes:
        ids: int64 [t].
        offsets: where each token stands, first character and the one after the last, int64 [t, 2]. Special tokens that
            the tokenizer added have (0, 0).
        special: whether the tokenizer added the token around the text, [t]. A special token's name inside a text
            becomes that token too, and is not `special`, as in transformers.
        kept: whether the token is one of the text's own, [t]: harvest keeps it. Tokens that are special by their place
            or by their id are not, nor are those of a prompt before the text.
        prompt: whether the token belongs to the prompt before the text, [t]. A token of both is the text's.
        positions: numbers of the tokens in the text, int64 [t]; in a window they go on from the window before, and a
            special token before or after the text has the position of the text's nearest token.
        left_out: number of tokens that the limit dropped.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    special: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    prompt: NDArray[np.bool_]
    positions: NDArray[np.int64]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def from_encoding(encoding: Any, special_by_id: NDArray[np.bool_], prompt: int) -> Tokens:
    """Tokens of an encoding of `tokenizers`.

    Args:
        encoding: of prompt and text together.
        special_by_id: whether an id is a special token's, [vocabulary].
        prompt: number of characters of the prompt before the text.
    """
    ids = np.array(encoding.ids, np.int64)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    special = np.array(encoding.special_tokens_mask, np.bool_)
    kept = ~(special | special_by_id[ids])
    of_prompt = np.zeros(len(ids), np.bool_)
    if prompt:
        of_prompt = (offsets[:, 1] <= prompt) & ~special
        kept &= ~of_prompt
        offsets = (offsets - prompt).clip(0)
    return Tokens(ids, offsets, special, kept, of_prompt, np.arange(len(ids)))


def from_ids(
    ids: NDArray[np.int32], before: NDArray[np.int64], after: NDArray[np.int64], special_by_id: NDArray[np.bool_]
) -> Tokens:
    """Tokens of a text of which only the ids are known, with special tokens around them; all offsets are (0, 0).

    Args:
        ids: of the text's own tokens, [t].
        before: ids of the special tokens before it.
        after: ids of those after it.
        special_by_id: whether an id is a special token's, [vocabulary].

    >>> frame = np.array([2]), np.array([3])
    >>> from_ids(np.array([8, 9], np.int32), *frame, np.arange(10) < 4).kept.tolist()
    [False, True, True, False]
    """
    framed = np.concatenate([before, ids, after]).astype(np.int64)
    special = np.ones(len(framed), np.bool_)
    special[len(before) : len(framed) - len(after)] = False
    nothing, places = np.zeros((len(framed), 2), np.int64), np.arange(len(framed))
    return Tokens(framed, nothing, special, ~(special | special_by_id[framed]), np.zeros_like(special), places)


def bare(
    ids: NDArray[np.int32], before: NDArray[np.int64], after: NDArray[np.int64], pad: int | None
) -> NDArray[np.int32]:
    """Ids as a data set keeps them, without padding at their ends and without the special tokens around a text.

    >>> bare(np.array([0, 2, 8, 9, 3], np.int32), np.array([2]), np.array([3]), pad=0).tolist()
    [8, 9]
    """
    if pad is not None:
        own = np.flatnonzero(ids != pad)
        ids = ids[own[0] : own[-1] + 1] if len(own) else ids[:0]
    if len(before) and np.array_equal(ids[: len(before)], before):
        ids = ids[len(before) :]
    if len(after) and np.array_equal(ids[max(len(ids) - len(after), 0) :], after):
        ids = ids[: len(ids) - len(after)]
    return ids


def limited(tokens: Tokens, limit: int, side: str) -> Tokens:
    """The tokens that are left of a text when a limit drops the others; special tokens around the text stay.

    Args:
        tokens: of a whole text.
        limit: largest number of tokens.
        side: "right" drops the end of the text, "left" its beginning.

    Raises:
        ValueError: no token of the text has room.
    """
    if len(tokens) <= limit:
        return tokens
    before, after = frame_of(tokens)
    size, length = room(limit, before + after), len(tokens) - before - after
    start = 0 if side == "right" else length - size
    cut = _part(tokens, before, after, start, start + size)
    return replace(cut, positions=np.arange(len(cut)), left_out=length - size)


def window_size(context: int | None, longest: int | None) -> int:
    """The largest number of tokens of a window, special ones included: `context`, or as many as the model reads.

    Args:
        context: what is asked for; None: as many as the model reads.
        longest: how many the model reads; None: nothing tells.

    Raises:
        ValueError: `context` is no number of tokens, or more than the model reads.

    >>> window_size(None, 512), window_size(16, None)
    (512, 16)
    """
    if context is None:
        return _UNKNOWN if longest is None else longest
    if not isinstance(context, int | np.integer) or isinstance(context, bool) or context < 1:
        raise ValueError(f"context is a number of tokens from 1 on, got {context!r}")
    if longest is not None and context > longest:
        raise ValueError(f"context is {context} tokens, and the model reads at most {longest}; give at most these")
    return int(context)


def windows_of(tokens: Tokens, limit: int) -> Iterator[Tokens]:
    """The windows of a text as harvest cuts them, each with the special tokens around the text."""
    before, after = frame_of(tokens)
    if len(tokens) == before + after:
        yield tokens
    for cut in cuts(len(tokens) - before - after, before, after, limit):
        part = tokens if len(tokens) <= limit else _part(tokens, before, after, cut.start, cut.stop)
        yield replace(part, positions=cut.positions.astype(np.int64))


def frame_of(tokens: Tokens) -> tuple[int, int]:
    """The numbers of special tokens before and after a text; all are before one without tokens of its own."""
    own = np.flatnonzero(~tokens.special)
    return (int(own[0]), len(tokens) - 1 - int(own[-1])) if len(own) else (len(tokens), 0)


def _part(tokens: Tokens, before: int, after: int, start: int, stop: int) -> Tokens:
    """The text's tokens from `start` to `stop`, with the special tokens around them."""
    parts = slice(before), slice(before + start, before + stop), slice(len(tokens) - after, None)
    names = ("ids", "offsets", "special", "kept", "prompt", "positions")
    arrays: dict[str, Any] = {n: np.concatenate([getattr(tokens, n)[part] for part in parts]) for n in names}
    return Tokens(**arrays)
