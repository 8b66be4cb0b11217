"""Which tokens a gate chooses among those that a pass reads."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sae_runtime.core.gates import WORDS_OF_PLACES, WordOfPlaces, by_word
from sae_runtime.train.token_positions import Pass


class Gate:
    """A choice of tokens of each request.

    Attributes:
        all_tokens: whether it chooses all but padding.
    """

    def __init__(
        self,
        gate: WordOfPlaces | Collection[int],
        prompt_tokens: int | Sequence[int] | None = None,
        skip_ids: Collection[int] = (),
    ) -> None:
        """Check what a caller gives.

        Args:
            gate: a word, or positions counted from 0 without padding.
            prompt_tokens: number of tokens of the prompt without padding, one, or one for each request; None to learn
                it from the passes.
            skip_ids: ids of tokens that are not chosen.

        Raises:
            ValueError: the gate is unknown, or there are no whole numbers where they should be.

        >>> Gate("answer").all_tokens
        False
        >>> Gate("prompt", prompt_tokens=[4, -1])
        Traceback (most recent call last):
        ValueError: prompt_tokens must be whole numbers from 0 on, got [4, -1]
        """
        if isinstance(gate, str) and gate not in WORDS_OF_PLACES:
            raise ValueError(
                f"the gate must be {', '.join(map(repr, WORDS_OF_PLACES))} or a set of positions, got {gate!r}"
            )
        self._gate = gate
        self._positions = None if isinstance(gate, str) else _whole(gate, "a gate of positions")
        self._prompt_tokens = None if prompt_tokens is None else _whole(prompt_tokens, "prompt_tokens")
        if self._prompt_tokens is not None and not len(self._prompt_tokens):
            raise ValueError("prompt_tokens has no numbers; give one, or one for each request")
        self._skip_ids = _whole(skip_ids, "skip_ids")
        self.all_tokens = isinstance(gate, str) and gate == "all"

    def chosen(self, now: Pass | None, x: Tensor) -> Tensor | float:
        """1 for the chosen tokens of activations x [b, t, d_in] in a pass and 0 for others; broadcastable to [b, t, 1].

        Raises:
            ValueError: it is not known which these are.
        """
        now = Pass(unknown="the module runs outside of a pass of its model") if now is None else now
        chosen: Tensor | bool = True
        try:
            if not self.all_tokens:
                chosen = self._by_position(now, *x.shape[:2])
            elif isinstance(now.mask, Tensor) and now.mask.ndim == 2:
                chosen = _positions(now, *x.shape[:2])[0] >= 0
        except _UnknownError as unknown:
            if self.all_tokens and not now.mask.all():
                raise ValueError(
                    f"it is not known here which tokens are padding: {unknown}; run one text at a time, without padding"
                ) from None
            if not self.all_tokens:
                raise ValueError(
                    f"the gate {self._gate!r} does not tell here which tokens it means: {unknown}; call generate of "
                    "the attached model, give prompt_tokens= and a mask [batch, time], or take the gate 'all'"
                ) from None
        if len(self._skip_ids):
            if now.ids is None or now.ids.shape != x.shape[:2]:
                raise ValueError("skip_ids needs the ids of tokens, and this model reads none; leave skip_ids out")
            other = ~torch.isin(now.ids, self._skip_ids.to(now.ids.device))
            chosen = other & (chosen.to(other.device) if isinstance(chosen, Tensor) else chosen)
        return chosen[..., None].to(x.device, torch.float32) if isinstance(chosen, Tensor) else 1.0

    def _by_position(self, now: Pass, b: int, t: int) -> Tensor:
        position, prompt = _positions(now, b, t)
        if self._positions is not None:
            return torch.isin(position, self._positions.to(position.device))
        if self._prompt_tokens is not None:
            prompt = _for_rows(self._prompt_tokens.view(-1, 1).to(position.device), b, "prompt_tokens")
        elif now.unknown_prompt:
            raise _UnknownError(now.unknown_prompt)
        return (position >= 0) & cast(Tensor, by_word(cast(WordOfPlaces, self._gate), position, prompt))


class _UnknownError(Exception):
    """Why it is not known which tokens a pass reads."""


def padding(now: Pass | None, tokens: Tensor) -> Tensor:
    """Which of the tokens [b, t] of a pass are known to be padding, bool [b, t].

    >>> padding(Pass(length=2, mask=torch.tensor([[0, 1]])), torch.zeros(1, 2)).tolist()
    [[True, False]]
    """
    none = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    try:
        return none if now is None else none | (_positions(now, *tokens.shape)[0] < 0).to(none.device)
    except _UnknownError:
        return none


def _positions(now: Pass, b: int, t: int) -> tuple[Tensor, Tensor]:
    """The position of each token, -1 for padding, [b or 1, t], and the number of tokens of the prompt, [b or 1, 1]."""
    if now.unknown:
        raise _UnknownError(now.unknown)
    if now.length not in (None, t):
        raise _UnknownError(f"the module is given {t} columns, and the model around it {now.length}")
    end, mask = now.start + t, _mask_of_columns(now.mask, now.start + t)
    prompt = end if now.prompt is None else now.prompt
    if mask is None:
        position, tokens = torch.arange(now.start, end)[None], torch.tensor([[prompt]])
    elif mask.shape[1] < end or (now.length is None and mask.shape[1] != t):
        raise _UnknownError(f"the mask has {mask.shape[1]} columns for {end}")
    else:
        real = _for_rows(mask != 0, b, "rows of the mask")
        position = (real.cumsum(dim=1) - 1).masked_fill(~real, -1)[:, now.start : end]
        tokens = real[:, :prompt].sum(dim=1, keepdim=True)
    if isinstance(now.position_ids, Tensor) and now.position_ids.ndim == 2:
        _check_position_ids(now.position_ids, position)
    return position, tokens


def _mask_of_columns(mask: Any, end: int) -> Tensor | None:
    """A mask [rows, columns] as it is; None for one of four dimensions of which the last column sees all others."""
    if isinstance(mask, dict):  # one for each kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None or not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2:
        return mask
    seen = mask[..., -1, :end] if mask.dtype == torch.bool else mask[..., -1, :end] == 0
    if mask.shape[-1] < end or not seen.all():
        raise _UnknownError(f"a mask of {mask.ndim} dimensions hides columns, which may be padding")
    return None


def _check_position_ids(given: Tensor, position: Tensor) -> None:
    """Raise if the tokens of a row do not stand one behind the other, as where several texts share a row."""
    if given.shape[1] != position.shape[1]:
        raise _UnknownError(f"position_ids of {given.shape[1]} columns are given for {position.shape[1]}")
    offset, padding = given - position.to(given.device), position.to(given.device) < 0
    far = torch.iinfo(offset.dtype)
    if (offset.masked_fill(padding, far.min).amax(dim=1) > offset.masked_fill(padding, far.max).amin(dim=1)).any():
        raise _UnknownError("the position_ids do not count the tokens of a row one by one")


def _for_rows(values: Tensor, b: int, what: str) -> Tensor:
    """Values of each request as values of each row of the batch, in which a request may have several."""
    if len(values) != 1 and b % len(values):
        raise _UnknownError(f"{len(values)} {what} do not fit {b} requests")
    return values if len(values) == 1 else values.repeat_interleave(b // len(values), dim=0)


def _whole(numbers: Any, what: str) -> Tensor:
    """Whole numbers that are not negative, as a tensor [n]."""
    values = numbers.tolist() if isinstance(numbers, Tensor | np.ndarray) else numbers
    values = list(values) if isinstance(values, Collection) and not isinstance(values, bytes) else [values]
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n < 2**63 for n in values):
        raise ValueError(f"{what} must be whole numbers from 0 on, got {numbers!r}")
    return torch.tensor([int(n) for n in values], dtype=torch.int64)
