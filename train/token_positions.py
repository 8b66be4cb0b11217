"""Which columns of a text each pass of a model reads, and how many of them are prompt.

A column holds a token of each row of the batch, or padding. The reader is the innermost transformers model that holds a
hooked module. The rules:

- A pass begins at the column behind those that the reader's cache holds, and at column 0 without a cache; or where
  `cache_position` says.
- While the attached model generates, the prompt is what `generate` was given.
- Where passes are made by hand, the prompt is the first pass of a text. A single column that is read later with the
  cache of that text is generated.
- In an encoder every column is prompt.

What the rules do not tell is said to be unknown, never guessed.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from sae_runtime.train.generations import Generation, Prompt, cache_of, tokens_in

_TIME_FIRST = ("xlnet", "fsmt")  # types of models


@dataclass(frozen=True)
class Pass:
    """The columns that one pass of the reader reads.

    Attributes:
        start: the first column.
        length: number of columns; None if the reader is given no tokens, but pictures or sound.
        mask: 0 for padding, [rows, columns]; None without padding; or a mask of another form that the reader was given.
        ids: of the tokens, [rows, length]; None if they are not known.
        prompt: number of columns that are prompt; None if all are.
        position_ids: where the caller says that the tokens stand, [rows, length].
        unknown: why it is not known which columns these are; empty if it is.
        unknown_prompt: why it is not known how many columns are prompt.
    """

    start: int = 0
    length: int | None = None
    mask: Any = None
    ids: Tensor | None = None
    prompt: int | None = None
    position_ids: Any = None
    unknown: str = ""
    unknown_prompt: str = ""

    @property
    def end(self) -> int:
        """The column behind the last one."""
        return self.start + (self.length or 0)


@dataclass(frozen=True)
class _Text:
    """What a cache holds.

    Attributes:
        columns: their number.
        prompt: how many of them are prompt; None if that is not known.
        prompt_of: the prompt of the `generate` that filled it.
        mask: 0 for padding, [rows, columns or more]; None if nothing is known to be.
    """

    columns: int
    prompt: int | None
    prompt_of: Prompt | None
    mask: Tensor | None


class Reader(threading.local):
    """Follows the passes of the models around a module, in each thread those that run there.

    Attributes:
        now: the pass that runs; None between passes.
    """

    def __init__(self, models: Sequence[Any], generations: Sequence[Generation], *, all_tokens: bool) -> None:
        """Follow models.

        Args:
            models: the models around a module, from the outermost to the reader.
            generations: what those that can generate are given.
            all_tokens: nothing but padding matters, so that nothing else is found out.

        Raises:
            ValueError: the reader's activations are [time, batch, d_in].
        """
        if getattr(getattr(models[-1], "config", None), "model_type", None) in _TIME_FIRST:
            raise ValueError(
                f"{type(models[-1]).__name__} puts time before the batch, and attach reads [batch, time]; harvest can "
                "read its activations"
            )
        self.now: Pass | None = None
        self._models, self._generations, self._all_tokens = models, generations, all_tokens
        self._is_encoder = any(_has_in_its_encoder(model, models[-1]) for model in models)
        self._is_decoder = [_has_in_its_decoder(one.model, models[-1]) for one in generations]
        self._names = [list(inspect.signature(model.forward).parameters) for model in models]
        self._outer_ids: Tensor | None = None  # of the tokens, where an outer model makes embeddings of them
        self._cache: Any = None  # that the pass was given
        self._texts: Any = WeakIdKeyDictionary()  # what caches hold
        self._alone: Tensor | None = None  # tokens of the last pass by hand without a cache
        self._prompt: Prompt | None = None  # of the last pass while a model generated
        self._end, self._keeps_cache = 0, False  # of that pass

    def follow(self, watch: Callable[[], RemovableHandle]) -> list[RemovableHandle]:
        """Begin to follow. What `watch` hooks, at the reader or inside it, is called while `now` is its pass."""
        handles = [self._follow(number, model) for number, model in enumerate(self._models)]
        handles.append(watch())
        finish: Callable[..., None] = lambda _model, _args, output: self._finish(output)  # noqa: E731
        handles.append(self._models[-1].register_forward_hook(finish, always_call=True))
        return handles

    def _follow(self, number: int, model: Any) -> RemovableHandle:
        def begin(called: Any, args: Any, named: Any) -> None:
            if called is not model:
                raise ValueError(
                    f"a copy of the attached {type(model).__name__} runs, and attach follows the original; attach to "
                    "the copy, or run the module of a DataParallel model"
                )
            given = dict(zip(self._names[number], args, strict=False)) | named
            if number == 0:
                self._outer_ids = None
            if number == len(self._models) - 1:
                self._cache = cache_of(given)
                self.now = self._begun(given)
            elif not _has_encoder(model) and given.get("input_ids") is not None:
                self._outer_ids = given["input_ids"]

        handle: RemovableHandle = model.register_forward_pre_hook(begin, with_kwargs=True)
        return handle

    def _begun(self, given: dict[str, Any]) -> Pass:
        """The pass of the reader that begins with these arguments."""
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        tokens = given.get("inputs_embeds") if ids is None else ids
        if tokens is None or self._is_encoder:
            return Pass(length=None if tokens is None else tokens.shape[1], mask=mask, ids=ids)
        ids = self._outer_ids if ids is None else ids
        generating = [one.prompt is not None for one in self._generations]
        prompt = self._generations[generating.index(True)].prompt if any(generating) else None
        if self._all_tokens and (mask if prompt is None else prompt.mask) is None:
            return Pass(length=tokens.shape[1], ids=ids, unknown="only padding was asked for")
        key = _key(self._cache)
        text = None if key is None else self._texts.get(key)
        columns = given.get("cache_position")  # of the tokens; releases of transformers before 5 give them
        start = tokens_in(self._cache) if columns is None else int(columns[0])
        if start is None and text is not None:
            start = text.columns
        now = Pass(start or 0, tokens.shape[1], mask, ids, tokens.shape[1], given.get("position_ids"))
        if start is None:
            return replace(now, unknown="its cache does not tell how many tokens it holds")
        if "cu_seq_lens_q" in given:
            return replace(now, unknown="several texts share a row")
        if prompt is None:
            return self._by_hand(now, tokens, text)
        if not self._is_decoder[generating.index(True)]:
            return replace(now, unknown="it reads another text than the one that grows")
        return self._generating(now, prompt, text)

    def _generating(self, now: Pass, prompt: Prompt, text: _Text | None) -> Pass:
        """The same pass as one of `generate`, which pads the prompt alone."""
        mask = None if prompt.mask is None else pad(prompt.mask, (0, max(0, now.end - prompt.columns)), value=1)
        now = replace(now, mask=mask, prompt=prompt.columns, position_ids=None)
        if self._prompt is not prompt:
            goes_on = now.start == prompt.cached
        elif self._cache is None and now.start:  # the model keeps a cache inside
            goes_on = now.start == self._end
        elif self._cache is None:  # all that was read is read again, and a new token
            goes_on = now.length == self._end + 1 and not self._keeps_cache
        else:
            goes_on = text is not None and text.prompt_of is prompt
        if not goes_on:
            return replace(now, unknown="this pass does not go on from the last one of the generation")
        self._prompt, self._end = prompt, now.end
        return now

    def _by_hand(self, now: Pass, tokens: Tensor, text: _Text | None) -> Pass:
        """The same pass as one outside of `generate`."""
        self._prompt = None
        if now.start == 0:
            last, self._alone = self._alone, tokens
            if last is not None and not self._all_tokens:
                if _starts_with(tokens, last):
                    return replace(now, unknown_prompt="it reads the last text again with more tokens, and no cache")
                if tokens.shape == last.shape and last.shape[1] > 1 and not torch.equal(tokens, last):
                    if _starts_with(tokens, last[:, 1:]):
                        return replace(now, unknown="it reads the last text again without its first token")
            return now
        if text is not None and text.mask is not None and now.mask is None:
            now = replace(now, mask=pad(text.mask[:, : now.start], (0, tokens.shape[1]), value=1))
        if text is None or text.prompt is None or text.columns != now.start:
            return replace(now, unknown_prompt="its cache was filled or cut where that was not seen")
        if now.length != 1:
            return replace(now, unknown_prompt=f"{now.length} tokens come after the first pass, and may be either")
        return replace(now, prompt=text.prompt)

    def _finish(self, output: Any) -> None:
        now, self.now = self.now, None
        if now is None or output is None or now.unknown:
            return  # a pass that failed has no output
        key = _key(cache_of(output) if self._cache is None else self._cache)
        self._keeps_cache = key is not None
        if key is not None:
            mask = now.mask if isinstance(now.mask, Tensor) and now.mask.ndim == 2 else None
            self._texts[key] = _Text(now.end, None if now.unknown_prompt else now.prompt, self._prompt, mask)


def _key(cache: Any) -> Any:
    """What is the same object in all passes of a text: the cache, or the first tensor of a list; None for others."""
    while isinstance(cache, list | tuple):
        cache = cache[0] if cache else None
    return cache if hasattr(cache, "__weakref__") or isinstance(cache, Tensor) else None


def _starts_with(tokens: Tensor, first: Tensor) -> bool:
    """Whether tokens [rows, columns, ...] are these first ones and more."""
    n = first.shape[1]
    return n < tokens.shape[1] and tokens.dtype == first.dtype and torch.equal(tokens[:, :n], first)


def models_around(model: Any, module: torch.nn.Module) -> list[Any]:
    """The model, then the transformers models inside it that hold a module, from the outermost to the innermost.

    >>> layer = torch.nn.Identity()
    >>> models_around(torch.nn.Sequential(layer), layer)
    [Sequential(
      (0): Identity()
    )]
    """
    from transformers import PreTrainedModel

    name = next((name for name, inside in model.named_modules() if inside is module), "")
    parts = name.split(".") if name else []
    inner = [model.get_submodule(".".join(parts[: depth + 1])) for depth in range(len(parts))]
    return [model, *(one for one in inner if isinstance(one, PreTrainedModel))]


def _has_encoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _has_in_its_encoder(model: Any, inner: Any) -> bool:
    encoder = model.get_encoder() if _has_encoder(model) and hasattr(model, "get_encoder") else model
    return encoder is not model and any(one is inner for one in encoder.modules())


def _has_in_its_decoder(model: Any, inner: Any) -> bool:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return any(one is inner for one in decoder.modules())
