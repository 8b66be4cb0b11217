"""Harvest: run a transformers model on text and store its activations in a folder of shards."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sae_runtime.activations.stored import FORMAT_VERSION, INDEX, Activations, open_activations
from sae_runtime.activations.text import documents
from sae_runtime.activations.windows import Window, batches, first_rows, groups, origin, padded, windows
from sae_runtime.bundle.files import new_file, write_json
from sae_runtime.bundle.tensors import read_header, save_tensors
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import ask_for_huge_pages, memory_errors
from sae_runtime.train.harvest.config import HarvestConfig, plan
from sae_runtime.train.harvest.folder import check_folder, is_whole, start_folder
from sae_runtime.train.harvest.host_model import find_module, hidden_states, load_host_model, longest_window

_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Reader:
    """Computes the activations of a model at a hook, from windows of tokens.

    The model computes in the type that its weights are stored in. Of a module that runs several times in a forward
    pass, the first output counts.
    """

    def __init__(self, config: HarvestConfig) -> None:
        """Load the model.

        Raises:
            FileNotFoundError: the folder of the model is missing.
            ValueError: the model or hook cannot be used, or not with windows of `config.context` tokens.
        """
        self.config = config
        self._tokenizer, self._model = load_host_model(config.model, config.device)
        _check_context(config, self._tokenizer, self._model)
        self._module = find_module(self._model, config.hook)

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """The windows of the texts, in the order of the texts; `Window` says what one is."""
        return windows(self._tokenizer, texts, context=self.config.context, special=self.config.special)

    def activations(self, group: Sequence[Window], tick: Callable[[int], object]) -> torch.Tensor:
        """The activations of the kept tokens, [n, d_in] in the order of the windows, in the type of the config.

        The group holds at least one window. The longest windows go through the model first. After each forward pass
        `tick` gets the number of its rows.

        Raises:
            ValueError: an activation is NaN or Inf.
        """
        starts = np.cumsum([0, *(window.rows for window in group)])
        pad = 0 if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id
        x: torch.Tensor | None = None
        for numbers in batches(group, self.config.batch_tokens):
            batch = [group[number] for number in numbers]
            ids, real, kept = (torch.from_numpy(array).to(self._model.device) for array in padded(batch, pad))
            hidden = hidden_states(self.config.hook, self._model, self._module, ids, real)[kept]
            rows = hidden.to(getattr(torch, self.config.dtype))
            if not torch.isfinite(rows).all():
                raise ValueError(_nonfinite(self.config, batch, hidden, rows))
            if x is None:
                x = torch.empty(int(starts[-1]), rows.shape[1], dtype=rows.dtype)
            x[np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])] = rows.cpu()
            tick(len(rows))
        assert x is not None  # a group is not empty
        return x


@memory_errors()
def harvest(config: HarvestConfig, out: Path, *, force: bool = False, progress: bool = False) -> Activations:
    """Run the model over the text up to the hook and store one row a token, in the order of the text.

    `Reader` says what the model computes, and `Window` how positions are counted. A folder that an earlier harvest with
    the same config left unfinished is finished.

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
    """
    ask_for_huge_pages()
    texts = documents(config.text, config.document)
    origins = plan(config)
    check_folder(out, origins, force=force)
    reader = Reader(config)
    start_folder(out, origins, force=force)
    shards: list[dict[str, Any]] = []
    with progress_bar(config.tokens, "tokens", shown=progress) as bar:
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
    if not shards:
        raise ValueError(f"no token of the text is kept ({', '.join(map(str, config.text))} hold none); give more text")
    d_in = read_header(out / shards[0]["file"])["activations"].shape[1]
    index = {"format_version": FORMAT_VERSION, "shards": shards, "d_in": d_in, "model": config.called}
    settings = {name: getattr(config, name) for name in ("hook", "document", "context", "tokens", "dtype", "special")}
    write_json(out / INDEX, index | settings)
    return open_activations(out)


def _nonfinite(config: HarvestConfig, batch: Sequence[Window], hidden: torch.Tensor, rows: torch.Tensor) -> str:
    row = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
    source = origin(batch)
    where = f"document {source['documents'][row]}, position {source['positions'][row]}"
    if torch.isfinite(hidden[row]).all():
        return f"an activation at {where} is too large for {config.dtype}; store bfloat16 or float32"
    return f"{config.hook} gives NaN or Inf at {where}; leave that document out or hook another module"


def _check_context(config: HarvestConfig, tokenizer: Any, model: Any) -> None:
    limit = longest_window(tokenizer, model)
    if limit is not None and config.context > limit:
        raise ValueError(f"context is {config.context} tokens, {config.model} reads at most {limit}; lower --context")
