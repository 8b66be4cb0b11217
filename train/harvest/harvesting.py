"""Harvest: run a transformers model on text and store its activations in a folder of shards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sae_runtime.activations.documents import Document, documents
from sae_runtime.activations.sources import SOURCES, source_writer
from sae_runtime.activations.stored import FORMAT_VERSION, INDEX, Activations, open_activations
from sae_runtime.activations.windows import Window, batches, first_rows, groups, origin, padded, token_ids, windows
from sae_runtime.bundle.files import new_file, write_json
from sae_runtime.bundle.tensors import read_header, save_tensors
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import ask_for_huge_pages, memory_errors
from sae_runtime.train.harvest.config import HarvestConfig, plan
from sae_runtime.train.harvest.folder import check_folder, is_whole, start_folder
from sae_runtime.train.harvest.host_model import find_module, hidden_states, load_host_model, longest_window

_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Pass:
    """Windows of tokens that went through a model together, up to the hook."""

    ids: torch.Tensor  # [batch, time]
    real: torch.Tensor  # True for tokens, False for padding, [batch, time]
    kept: torch.Tensor  # True for tokens whose activations are kept, [batch, time]
    hidden: torch.Tensor  # the activations at the hook, [batch, time, d_in]
    x: torch.Tensor  # those of the kept tokens, in the order of the windows, [n, d_in]


class Reader:
    """Computes the activations of a model at a hook, from windows of tokens.

    The model computes in the type of its stored weights. If the module runs several times in a forward pass, its first
    output counts.
    """

    def __init__(self, config: HarvestConfig, *, head: bool = False) -> None:
        """Load the model, with its head if it has one and `head` is set.

        Raises:
            FileNotFoundError: the folder of the model is missing.
            ValueError: the model or hook cannot be used, or not with windows of `config.context` tokens.
        """
        self.config = config
        self._tokenizer, self.model = load_host_model(config.model, config.device, head=head)
        limit = longest_window(self._tokenizer, self.model)
        if limit is not None and config.context > limit:
            raise ValueError(
                f"context is {config.context} tokens, {config.model} reads at most {limit}; lower --context"
            )
        self.skip_ids = token_ids(self._tokenizer, config.skip_token)
        self.module = find_module(self.model.base_model, config.hook)

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
        """Run the model on windows up to the hook.

        Raises:
            ValueError: an activation of a kept token is NaN or Inf.
        """
        pad = self._tokenizer.pad_token_id or 0
        ids, real, kept = (torch.from_numpy(array).to(self.model.device) for array in padded(batch, pad))
        hidden = hidden_states(self.config.hook, self.model, self.module, ids, real)
        x = hidden[kept]
        if (place := _nonfinite(batch, x)) is not None:
            raise ValueError(
                f"{self.config.hook} gives NaN or Inf at {place}; leave that document out or hook another module"
            )
        return Pass(ids, real, kept, hidden, x)

    def activations(self, group: Sequence[Window], tick: Callable[[int], object]) -> torch.Tensor:
        """The activations of the kept tokens, [n, d_in] in the order of the windows, in the type of the config.

        The group holds at least one window. The longest windows go through the model first. After each forward pass
        `tick` gets the number of its rows.

        Raises:
            ValueError: an activation is NaN or Inf.
        """
        starts = np.cumsum([0, *(window.rows for window in group)])
        x: torch.Tensor | None = None
        for numbers in batches(group, self.config.batch_tokens):
            batch = [group[number] for number in numbers]
            computed = self.read(batch).x
            rows = computed.to(getattr(torch, self.config.dtype))
            if rows.dtype != computed.dtype and (place := _nonfinite(batch, rows)) is not None:
                raise ValueError(
                    f"an activation at {place} is too large for {self.config.dtype}; store bfloat16 or float32"
                )
            if x is None:
                x = torch.empty(int(starts[-1]), rows.shape[1], dtype=rows.dtype)
            x[np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])] = rows.cpu()
            tick(len(rows))
        assert x is not None  # a group is not empty
        return x


@memory_errors()
def harvest(config: HarvestConfig, out: Path, *, force: bool = False, progress: bool = False) -> Activations:
    """Run the model over the text up to the hook and store one row a token, in the order of the text.

    `Reader` says what the model computes, and `Window` how positions are counted. If an earlier harvest with the same
    config left the folder unfinished, this one finishes it.

    Args:
        config: the settings.
        out: the folder to make or to finish.
        force: start over in a folder of an earlier harvest.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` is finished and `force` is not set, or it holds files that harvest did not write.
        FileNotFoundError: a text file or the folder of the model is missing.
        ValueError: `out` was begun with another config, the model or hook cannot be used, the text cannot be read or
            gives no rows, or an activation is NaN or Inf.
        MemoryError: a batch does not fit on the device.

    >>> config = HarvestConfig(model="gpt2", hook="h.6", text=(Path("book.txt"),))  # doctest: +SKIP
    >>> harvest(config, Path("activations")).d_in  # doctest: +SKIP
    768
    """
    ask_for_huge_pages()
    texts = documents(config.text, config.reading)
    origins = plan(config)
    check_folder(out, origins, force=force)
    reader = Reader(config)
    start_folder(out, origins, force=force)
    shards: list[dict[str, Any]] = []
    with source_writer(out / SOURCES) as write, progress_bar(config.tokens, "tokens", shown=progress) as bar:
        for group in groups(first_rows(reader.windows(texts), config.tokens), config.shard_tokens):
            path = out / f"shard-{len(shards):05d}.safetensors"
            rows = sum(window.rows for window in group)
            if is_whole(path, rows, _SAFETENSORS_DTYPES[config.dtype]):
                bar.update(rows)
            else:
                ids = {name: torch.from_numpy(ids) for name, ids in origin(group).items()}
                tensors = {"activations": reader.activations(group, bar.update), **ids}
                with new_file(path, force=True) as partial:
                    save_tensors(partial, tensors, save_file)
            shards.append({"file": path.name, "rows": rows})
            write(group)
    if not shards:
        raise ValueError(f"no token of the text is kept ({', '.join(map(str, config.text))} hold none); give more text")
    d_in = read_header(out / shards[0]["file"])["activations"].shape[1]
    index = {"format_version": FORMAT_VERSION, "shards": shards, "d_in": d_in, "model": config.called}
    names = ("hook", "document", "context", "tokens", "dtype", "special", "skip_first")
    settings = {name: getattr(config, name) for name in names}
    sources = {"file": SOURCES, "bytes": (out / SOURCES).stat().st_size}
    write_json(out / INDEX, index | {"sources": sources} | settings | {"skip_ids": reader.skip_ids})
    return open_activations(out)


def _nonfinite(batch: Sequence[Window], x: torch.Tensor) -> str | None:
    """The document and position of the first row of x that is not finite, or None."""
    if torch.isfinite(x).all():
        return None
    row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
    source = origin(batch)
    return f"document {source['documents'][row]}, position {source['positions'][row]}"
