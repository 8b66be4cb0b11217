"""Activations of a transformers model on text, written as the folder of shards that sae_runtime.activations reads."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from sae_runtime.activations import FORMAT_VERSION, INDEX, Activations, open_activations
from sae_runtime.files import new_file, write_json
from sae_runtime.tensors import read_header, save_tensors
from sae_runtime.train.config import option
from sae_runtime.train.device import memory_errors
from sae_runtime.train.harvest_folder import check_folder, is_whole, start_folder
from sae_runtime.train.host import find_module, hidden_states, load_host, longest_window
from sae_runtime.train.text import SPLITS, documents
from sae_runtime.train.windows import Window, batches, first_rows, groups, origin, padded, windows

DTYPES = {"float32": (torch.float32, "F32"), "float16": (torch.float16, "F16"), "bfloat16": (torch.bfloat16, "BF16")}


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to harvest. `batch_tokens` and `device` change rounding at most; all else decides the rows and shards.

    Raises:
        ValueError: a value is out of its range.
    """

    model: str = option(MISSING, "transformers folder or hub name")
    hook: str = option(MISSING, "module whose output is kept, as named_modules has it, e.g. encoder.layer.3")
    name: str | None = option(None, "name to record for the model [its folder's name, or the hub's]")
    text: tuple[Path, ...] = option(MISSING, "text files, UTF-8; .jsonl: one object a line, its field 'text'")
    split: str = option("paragraph", "what a document is in a text file", choices=SPLITS)
    context: int = option(128, "tokens per window, special tokens included, >= 1")
    tokens: int | None = option(None, "rows after which to stop, >= 1 [all of the text]")
    dtype: str = option("float32", "type of the rows on disk", choices=tuple(DTYPES))
    special: bool = option(False, "keep the activations of special tokens too")
    batch_tokens: int = option(4096, "tokens per forward pass, padding included, >= context")
    shard_tokens: int = option(65536, "rows per shard at most (a window is not cut), >= 1")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        for name in ("model", "hook", "text"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        for name, known in (("split", SPLITS), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("context", "tokens", "shard_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens must be >= context, got {self.batch_tokens} for windows of {self.context}")

    @property
    def called(self) -> str:
        """What is recorded as the model: no path of this machine."""
        return self.name or (Path(os.path.abspath(self.model)).name if Path(self.model).is_dir() else self.model)


class Reader:
    """Reads texts with a model: windows of tokens, and the activations of the tokens that they keep.

    The model computes in the type of its checkpoint. A module that runs several times in a forward pass is read the
    first time.
    """

    def __init__(self, config: HarvestConfig) -> None:
        """Load the model.

        Raises:
            FileNotFoundError: the folder of the model is missing.
            ValueError: the model or hook cannot be used, or not with windows of `config.context` tokens.
        """
        self.config = config
        self._tokenizer, self._model = load_host(config.model, config.device)
        _check_context(config, self._tokenizer, self._model)
        self._module = find_module(self._model, config.hook)

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """The windows of texts, in their order; see `Window`."""
        return windows(self._tokenizer, texts, context=self.config.context, special=self.config.special)

    def activations(self, group: Sequence[Window], tick: Callable[[int], object]) -> torch.Tensor:
        """Rows [n, d_in] in the order of the windows, of which there is one at least, in the config's type.

        Forward passes go by length, the longest windows first. After each, `tick` is called with its rows.

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
            rows = hidden.to(DTYPES[self.config.dtype][0])
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
    """Run the model over the text up to the hook and keep one row per token, in the order of the text.

    See `Reader` for what the model computes and `Window` for what positions count. An unfinished folder of the same
    config is finished.

    Args:
        config: what to harvest.
        out: the folder to make or to finish.
        force: start over in a folder of an earlier harvest.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        FileExistsError: `out` is whole and `force` is not set, or it holds files that harvest did not write.
        FileNotFoundError: a text file or the folder of the model is missing.
        ValueError: `out` was begun with another config, the model or hook cannot be used, the text cannot be read or
            gives no rows, or an activation is NaN or Inf.
        MemoryError: a batch does not fit on the device.
    """
    texts = documents(config.text, config.split)
    origins = plan(config)
    check_folder(out, origins, force=force)
    reader = Reader(config)
    start_folder(out, origins, force=force)
    shards: list[dict[str, Any]] = []
    # disable=None hides the bar where stderr is no terminal.
    with tqdm(total=config.tokens, unit="token", unit_scale=True, disable=None if progress else True) as bar:
        for group in groups(first_rows(reader.windows(texts), config.tokens), config.shard_tokens):
            path = out / f"shard-{len(shards):05d}.safetensors"
            rows = sum(window.rows for window in group)
            if is_whole(path, rows, DTYPES[config.dtype][1]):
                bar.update(rows)
            else:
                ids = {name: torch.from_numpy(ids) for name, ids in origin(group).items()}
                tensors = {"activations": reader.activations(group, bar.update), **ids}
                with new_file(path, force=True) as partial:
                    save_tensors(partial, tensors, save_file)
            shards.append({"file": path.name, "rows": rows})
    if not shards:
        raise ValueError(f"no token of the text is kept ({', '.join(map(str, config.text))} hold none); give more text")
    width = read_header(out / shards[0]["file"])["activations"].shape[1]
    index = {"format_version": FORMAT_VERSION, "shards": shards, "d_in": width, "model": config.called}
    settings = {name: getattr(config, name) for name in ("hook", "split", "context", "tokens", "dtype", "special")}
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


def plan(config: HarvestConfig) -> dict[str, Any]:
    """What decides the rows, as JSON; files by size and time of change."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("batch_tokens", "device")}
    settings["text"] = [_stamp(path) for path in config.text]
    folder = Path(config.model)
    if folder.is_dir():
        settings["model"] = str(folder.resolve())
        settings["model_files"] = [_stamp(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return settings


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} ({stat.st_size} bytes, changed at {stat.st_mtime_ns} ns)"
