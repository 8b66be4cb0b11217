"""What a model was given to generate from, while its `generate` runs."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""The names that models of transformers give to what they remember of earlier tokens."""
_GENERATE, _EXPAND = "generate", "_expand_inputs_for_generation"


@dataclass(frozen=True)
class Prompt:
    """The tokens that `generate` was given, in columns that all rows of the batch share.

    Attributes:
        columns: their number, with padding, and with the tokens of a cache that was given.
        cached: how many of the columns that cache holds.
        mask: 0 for padding, [rows, columns]; None if there is none. Beams are rows too.
    """

    columns: int
    cached: int
    mask: Tensor | None


def cache_of(given: Any) -> Any:
    """What a model remembers of earlier tokens, among the arguments or the outputs of a pass; None if nothing is there.

    >>> cache_of({"input_ids": 1, "past_key_values": None, "cache_params": 2})
    2
    """
    values = (given.get(name) for name in CACHES) if isinstance(given, dict) else ()
    return next((value for value in values if value is not None), None)


def tokens_in(cache: Any) -> int | None:
    """The number of columns that a cache holds; None where it does not know.

    A cache of keys and values counts them. A state knows only whether it is that of no token.

    >>> tokens_in(None), tokens_in([1])
    (0, None)
    """
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError):  # a state
        pass
    try:
        return None if cache.has_previous_state() else 0
    except (AttributeError, TypeError, ValueError):
        return None


class Generation(threading.local):
    """The prompt of the `generate` that a model runs at this moment in a thread.

    Two methods of the model are overheard while blocks watch it: `generate`, and the one by which it repeats its inputs
    for beams and samples. That one sees the prompt as the first pass will, with padding and cache, before a new token.

    Attributes:
        prompt: the prompt; None while the model does not generate, and where the prompt is not known.
    """

    def __init__(self, model: Any, restore: list[tuple[str, Any]]) -> None:
        """Know nothing yet of a model; `restore` is for what was in the place of its methods, by name."""
        self.model, self._restore = model, restore
        self.prompt: Prompt | None = None
        self._depth, self._width = 0, 0  # of calls within calls; of the mask that the outermost call was given

    def overhear(self) -> None:
        """Begin to overhear a model that can generate."""
        for name, around in ((_GENERATE, self._around_generate), (_EXPAND, self._around_expand)):
            if hasattr(type(self.model), _EXPAND):
                self._replace(name, around)

    def _replace(self, name: str, around: Callable[..., Any]) -> None:
        before = self.model.__dict__.get(name)  # what another library put in the method's place

        def method(itself: Any, *args: Any, **settings: Any) -> Any:
            own = inspect.getattr_static(type(itself), name).__get__(itself, type(itself))
            return around(own if before is None else before, *args, **settings)

        # A method that is bound, unlike a function, is bound to the copy when a model is copied.
        self.model.__dict__[name] = MethodType(functools.wraps(getattr(type(self.model), name))(method), self.model)
        self._restore.append((name, before))

    def leave(self) -> None:
        """Give the model its own methods back."""
        for name, before in self._restore:
            del self.model.__dict__[name]
            if before is not None:
                self.model.__dict__[name] = before

    def _around_generate(self, call: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        if not self._depth:
            mask = settings.get("attention_mask")
            self._width = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        self._depth += 1
        try:
            return call(*args, **settings)
        finally:
            self._depth -= 1
            if not self._depth:
                self.prompt = None

    def _around_expand(self, call: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        ids, named = call(*args, **settings)
        if self._depth == 1:  # a model that drafts for itself generates within generate, from the same prompt
            self.prompt = self._prompt(ids, named)
        return ids, named

    def _prompt(self, ids: Any, named: dict[str, Any]) -> Prompt | None:
        has_encoder = bool(getattr(self.model.config, "is_encoder_decoder", False))
        mask = named.get("decoder_attention_mask" if has_encoder else "attention_mask")
        embedded = None if has_encoder else named.get("inputs_embeds")
        cached = tokens_in(cache_of(named))
        if cached is None or (mask is not None and mask.ndim != 2):
            return None
        columns = (ids if embedded is None else embedded).shape[1]
        # The ids may lack the tokens of a given cache; the mask has them. A mask without padding is dropped on the way.
        width = mask.shape[1] if mask is not None else cached + columns if has_encoder else self._width
        return Prompt(max(width, columns), cached, mask)


_WATCHED = WeakIdKeyDictionary()  # of models: their Generation, and how many blocks watch it


@contextmanager
def watched(model: Any) -> Iterator[Generation]:
    """Watch what a model generates from, in the block; several blocks share what they learn of one model.

    >>> class Model: ...
    >>> with watched(Model()) as generation:
    ...     generation.prompt is None
    True
    """
    if model not in _WATCHED:
        _WATCHED[model] = [Generation(model, []), 0]
        _WATCHED[model][0].overhear()
    watch = _WATCHED[model]
    watch[1] += 1
    try:
        yield watch[0]
    finally:
        watch[1] -= 1
        if not watch[1]:
            del _WATCHED[model]
            watch[0].leave()
