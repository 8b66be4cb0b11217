"""Harvest: run a transformers model on text and store its activations in a folder of shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
from sae_runtime.train.harvest.alignment import find_alignment
from sae_runtime.train.harvest.config import HarvestConfig, plan, refuse_other_settings
from sae_runtime.train.harvest.folder import check_folder, is_done, is_whole, start_folder
from sae_runtime.train.harvest.forward import arguments
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states
from sae_runtime.train.harvest.host_model import load_host_model, longest_window

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

            found = try_to_load_from_cache(self.config.model, "config.json")
            facts["model_commit"] = Path(found).parent.name if isinstance(found, str) else None
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
        found: list[torch.Tensor] = []
        for numbers in batches(group, self.batch_tokens):
            batch = [group[number] for number in numbers]
            place_of = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])
            for at, computed in enumerate(one.x for one in self.read_all(batch)):
                rows = computed.to(getattr(torch, self.config.dtype))
                if rows.dtype != computed.dtype and (place := _nonfinite(batch, rows)) is not None:
                    raise ValueError(
                        f"an activation at {place} is too large for {self.config.dtype}; store bfloat16 or float32"
                    )
                if at == len(found):
                    found.append(torch.empty(int(starts[-1]), rows.shape[1], dtype=rows.dtype))
                found[at][place_of] = rows.cpu()
            tick(len(place_of))
        return found


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
    return _harvest({out: config}, force=force, progress=progress)[0]


@memory_errors()
def harvest_many(
    configs: Mapping[str, HarvestConfig], out: Path, *, force: bool = False, progress: bool = False
) -> dict[str, Activations]:
    """Harvest several hooks in one forward pass, each as `harvest` does it alone.

    Args:
        configs: the settings by name; they differ in their hooks alone.
        out: a folder that will hold a folder of activations for each name.
        force: as for `harvest`, in each of the folders.
        progress: as for `harvest`.

    Returns:
        The activations by name.

    Raises:
        ValueError: as for `harvest`. Also if a name is not the name of a folder, or the configs differ in a setting
            other than the hook.
        FileExistsError: as for `harvest`.
        FileNotFoundError: as for `harvest`.
        MemoryError: as for `harvest`.

    >>> config = HarvestConfig(model="gpt2", hook="h.3", text=(Path("book.txt"),))  # doctest: +SKIP
    >>> configs = {"h.3": config, "h.6": replace(config, hook="h.6")}  # doctest: +SKIP
    >>> sorted(harvest_many(configs, Path("activations")))  # doctest: +SKIP
    ['h.3', 'h.6']
    """
    refuse_other_settings(configs)
    made = _harvest({out / name: config for name, config in configs.items()}, force=force, progress=progress)
    return dict(zip(configs, made, strict=True))


def _harvest(configs: Mapping[Path, HarvestConfig], *, force: bool, progress: bool) -> list[Activations]:
    """Fill a folder for each hook; the configs differ in their hooks alone.

    The shards of all hooks of one part of the text are written before the next part is read.
    """
    ask_for_huge_pages()
    config = next(iter(configs.values()))
    texts = documents(config.text, config.reading)
    left = {out: one for out, one in configs.items() if force or not is_done(out, plan(one))}
    left = left or dict(configs)  # if all are done, the check says so
    for out, one in left.items():
        check_folder(out, plan(one), force=force)  # before the model is loaded
    reader = Reader(config, [one.hook for one in left.values()])
    for out, one in left.items():
        check_folder(out, reader.plan(one), force=force)
    for out, one in left.items():
        start_folder(out, reader.plan(one), force=force)
    shards: list[dict[str, Any]] = []
    with ExitStack() as stack, progress_bar(config.tokens, "tokens", shown=progress) as bar:
        writers = [stack.enter_context(source_writer(out / SOURCES)) for out in left]
        for group in groups(first_rows(reader.windows(texts), config.tokens), config.shard_tokens):
            file, rows = f"shard-{len(shards):05d}.safetensors", sum(window.rows for window in group)
            if all(is_whole(out / file, rows, _SAFETENSORS_DTYPES[config.dtype]) for out in left):
                bar.update(rows)
            else:
                ids = {name: torch.from_numpy(ids) for name, ids in origin(group).items()}
                for out, x in zip(left, reader.activations(group, bar.update), strict=True):
                    with new_file(out / file, force=True) as partial_file:
                        save_tensors(partial_file, {"activations": x, **ids}, save_file)
            shards.append({"file": file, "rows": rows})
            for write in writers:
                write(group)
    if not shards:
        raise ValueError(f"no token of the text is kept ({', '.join(map(str, config.text))} hold none); give more text")
    names = ("document", "context", "tokens", "dtype", "special", "skip_first")
    settings = {name: getattr(config, name) for name in names} | {"skip_ids": reader.skip_ids}
    for out, point in zip(left, reader.points, strict=True):
        d_in = read_header(out / shards[0]["file"])["activations"].shape[1]
        index = {"format_version": FORMAT_VERSION, "shards": shards, "d_in": d_in, "model": config.called}
        sources = {"file": SOURCES, "bytes": (out / SOURCES).stat().st_size}
        hook = {"hook": point.hook, "transformer_lens_hook": point.transformer_lens}
        write_json(out / INDEX, index | hook | {"sources": sources} | settings)
    return [open_activations(out) for out in configs]


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
