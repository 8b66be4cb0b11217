"""Harvest: run a transformers model on text and store its activations in a folder of shards."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.activations.documents import documents
from sae_runtime.activations.sources import SOURCES, source_writer
from sae_runtime.activations.stored import FORMAT_VERSION, INDEX, Activations, open_activations
from sae_runtime.activations.windows import first_rows, groups, origin
from sae_runtime.bundle.files import new_file, write_json
from sae_runtime.bundle.tensors import read_header, save_tensors
from sae_runtime.core.progress import progress_bar
from sae_runtime.train.device import ask_for_huge_pages, memory_errors
from sae_runtime.train.harvest.config import HarvestConfig, plan, refuse_other_settings
from sae_runtime.train.harvest.folder import check_folder, is_done, is_whole, start_folder
from sae_runtime.train.harvest.reader import Reader

_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


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
                ids = origin(group)
                for out, x in zip(left, reader.activations(group, bar.update), strict=True):
                    with new_file(out / file, force=True) as partial_file:
                        bits = {"activations"} if x.dtype == torch.bfloat16 else ()
                        save_tensors(partial_file, {"activations": _bits(x), **ids}, bfloat16=bits)
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


def _bits(x: torch.Tensor) -> NDArray[Any]:
    """Activations as numpy has them; bfloat16 as its bits."""
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()
