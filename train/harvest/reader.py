"""A model that is read at hooks: windows of tokens in, activations out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_runtime.activations.documents import Document
from sae_runtime.activations.windows import Window, batches, origin, padded, token_ids, windows
from sae_runtime.train.harvest.alignment import find_alignment
from sae_runtime.train.harvest.config import HarvestConfig, plan
from sae_runtime.train.harvest.forward import arguments
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states
from sae_runtime.train.harvest.host_model import load_host_model, longest_window


@dataclass(frozen=True)
class Pass:
    """Windows of tokens that went through a model together, up to the hook."""

    ids: torch.Tensor  # [batch, time]
    real: torch.Tensor  # True for tokens, False for padding, [batch, time]
    kept: torch.Tensor  # True for tokens whose activations are kept, [batch, time]
    hidden: torch.Tensor  # the activations at the hook, [batch, time, d_in]
    x: torch.Tensor  # those of the kept tokens, in the order of the windows, [n, d_in]


class Reader:
    """Computes the activations of a model at hooks, from windows of tokens.

    The model computes in the type of its stored weights. A few short passes come first: they go on to the end of the
    model and count the calls of the modules, so that a hook at one of several calls has to say which, and they find out
    how rows belong to tokens. All later passes end at the last hook.
    """

    def __init__(self, config: HarvestConfig, hooks: Sequence[str] = (), *, head: bool = False) -> None:
        """Load the model, with its head if it has one and `head` is set.

        Args:
            config: what to read.
            hooks: where to read, instead of the config's hook alone.
            head: whether the whole model is used, with its head.

        Raises:
            FileNotFoundError: the folder of the model is missing.
            ValueError: the model or a hook cannot be used, or not with windows of `config.context` tokens.
        """
        self.config = config
        hooks = hooks or (config.hook,)
        self._tokenizer, self.model = load_host_model(
            config.model, config.device, head=head, hooks=None if head else hooks
        )
        limit = longest_window(self._tokenizer, self.model)
        if limit is not None and config.context > limit:
            raise ValueError(
                f"context is {config.context} tokens, {config.model} reads at most {limit}; lower --context"
            )
        self.points = [find_hook(self.model, hook) for hook in hooks]
        self.skip_ids = token_ids(self._tokenizer, config.skip_token)
        self._vocabulary = _embeddings(self.model)
        pad = self._tokenizer.pad_token_id
        self._pad = pad if pad is not None and pad < self._vocabulary else 0  # hidden by the mask; it must only exist
        self._alignment = find_alignment(hooks, partial(self._raw, whole=True), self._ordinary(), self._pad)
        self.batch_tokens = 1 if self._alignment.alone else config.batch_tokens

    def laid_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states of a `Pass` at the first hook in the order in which the model has them."""
        return hidden.transpose(0, 1) if self._alignment.time_first[0] else hidden

    def _raw(self, ids: torch.Tensor, real: torch.Tensor, *, whole: bool = False) -> list[torch.Tensor]:
        return hidden_states(self.points, self.model, arguments(self.model, ids, real), ("batch", "time"), whole=whole)

    def _ordinary(self) -> torch.Tensor:
        """A few ids of words, at random."""
        ids = np.setdiff1d(np.arange(min(len(self._tokenizer), self._vocabulary)), self._tokenizer.all_special_ids)
        if len(ids) < 2:
            raise ValueError(
                f"{self.config.model} has no tokenizer that knows words; put the tokenizer's files, such as "
                "tokenizer.json, beside the model"
            )
        few = np.random.default_rng(0).choice(ids, min(len(ids), 16), replace=False)
        return torch.from_numpy(few).to(self.model.device)

    def plan(self, config: HarvestConfig | None = None) -> dict[str, Any]:
        """The facts that decide the rows at a config's hook, and the commit of a model of the hub."""
        facts = plan(config or self.config)
        if not Path(self.config.model).is_dir():
            from huggingface_hub import try_to_load_from_cache  # here, because the import takes a while

            cached = try_to_load_from_cache(self.config.model, "config.json")
            facts["model_commit"] = Path(cached).parent.name if isinstance(cached, str) else None
        return facts

    def windows(self, texts: Iterable[Document]) -> Iterator[Window]:
        """The windows of the texts, in the order of the texts; `Window` says what one is."""
        return windows(
            self._tokenizer,
            texts,
            context=self.config.context,
            special=self.config.special,
            skip_first=self.config.skip_first,
            skip_ids=self.skip_ids,
        )

    def read(self, batch: Sequence[Window]) -> Pass:
        """Run the model on windows up to the first hook; raises as `read_all` does."""
        return self.read_all(batch)[0]

    def read_all(self, batch: Sequence[Window]) -> list[Pass]:
        """Run the model on windows up to the last hook: a `Pass` for each hook.

        Raises:
            ValueError: an activation of a kept token is NaN or Inf, or a token has no embedding.
        """
        arrays = padded(batch, self._pad, self._alignment.multiple)
        if (largest := int(arrays[0].max())) >= self._vocabulary:
            raise ValueError(
                f"{type(self._tokenizer).__name__} gives a token the id {largest}, {self.config.model} has embeddings "
                f"for ids below {self._vocabulary}; give the model its own tokenizer"
            )
        ids, real, kept = (torch.from_numpy(array).to(self.model.device) for array in arrays)
        passes = []
        for point, hidden in zip(self.points, self._alignment.rows(self._raw(ids, real)), strict=True):
            x = hidden[kept]
            if (place := _nonfinite(batch, x)) is not None:
                remedy = "leave that document out or hook another module"
                if x.dtype == torch.float16:
                    remedy += ", or save the model in float32, for it computes in float16 and that ends at 65504"
                raise ValueError(f"{point.hook} gives NaN or Inf at {place}; {remedy}")
            passes.append(Pass(ids, real, kept, hidden, x))
        return passes

    def activations(self, group: Sequence[Window], tick: Callable[[int], object]) -> list[torch.Tensor]:
        """The activations of the kept tokens at each hook.

        They are [n, d_in] in the order of the windows, in the type of the config. The group holds at least one window.
        The longest windows go through the model first. After each forward pass `tick` gets the number of its rows.

        Raises:
            ValueError: an activation is NaN or Inf.
        """
        starts = np.cumsum([0, *(window.rows for window in group)])
        of_hooks: list[torch.Tensor] = []
        for numbers in batches(group, self.batch_tokens):
            batch = [group[number] for number in numbers]
            places = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])
            for hook, computed in enumerate(one.x for one in self.read_all(batch)):
                rows = computed.to(getattr(torch, self.config.dtype))
                if rows.dtype != computed.dtype and (place := _nonfinite(batch, rows)) is not None:
                    raise ValueError(
                        f"an activation at {place} is too large for {self.config.dtype}; store bfloat16 or float32"
                    )
                if hook == len(of_hooks):
                    of_hooks.append(torch.empty(int(starts[-1]), rows.shape[1], dtype=rows.dtype))
                of_hooks[hook][places] = rows.cpu()
            tick(len(places))
        return of_hooks


def _embeddings(model: Any) -> int:
    """The number of ids that a model has embeddings for; without a table of them there is no limit."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return 1 << 31


def _nonfinite(batch: Sequence[Window], x: torch.Tensor) -> str | None:
    """The document and position of the first row of x that is not finite, or None."""
    if torch.isfinite(x).all():
        return None
    row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
    source = origin(batch)
    return f"document {source['documents'][row]}, position {source['positions'][row]}"
