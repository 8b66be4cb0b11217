"""Sparse features of many tokens in the layout of EleutherAI delphi's latent cache, for its explainers and scorers.

A folder of the hook's name holds `config.json` and, for each run of features, `{first}_{last}.safetensors` with

    locations    [matches, 3]: sequence, position in it, feature counted from the first; uint16, or uint32 if needed
    activations  [matches]: float16, as delphi itself writes them, or float32
    tokens       [sequences, length]: int64, the same in each file

in the order of the tokens. As in delphi's own caches, all sequences have one length and may cross the ends of
documents. The tokens after the last whole sequence are left out.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.files import new_folder
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.core.features import Features
from sae_runtime.extraction.encodings import rounded

SEQUENCE = 256  # tokens, as in delphi
FILE_MATCHES = 1 << 24  # wanted matches in a file; delphi's readers hold a whole file in memory
_MIN_FILES = 5  # as in delphi
_MAX_FILES = 200  # two temporary files are open for each
_CONFIG = "config.json"
_FEATURES = re.compile(r"\d+_\d+\.safetensors")

Run = tuple[Features, NDArray[np.int32]]
"""The features of consecutive tokens, of shape (n,), and the ids of these, [n]."""


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Number of tokens and matches of a cache, and the bytes of its files."""

    tokens: int
    matches: int
    size: int


def output(path: Path, *, force: bool, inputs: Mapping[str, Path] | None = None) -> Output:
    """The folder of a cache, which callers check before long work.

    Args:
        path: the folder.
        force: replace an existing folder that holds nothing but caches.
        inputs: see `Output`.

    Raises:
        ValueError: the name ends in .parquet.
    """
    if path.suffix == ".parquet":
        raise ValueError(f"{path} ends in .parquet, but delphi reads a folder; name a folder, or leave out --format")
    return Output(path=path, kind="folder", force=force, inputs=inputs or {}, foreign=foreign)


def foreign(out: Path) -> str | None:
    """The name of a folder's first entry that `write` did not make, or None if `write` made all entries.

    >>> Path("empty").mkdir(exist_ok=True)
    >>> foreign(Path("empty"))
    """
    return next((entry.name for entry in sorted(out.iterdir()) if not _is_ours(entry)), None)


def check(path: Path, tokens: int | None, hook: str | None, sequence: int) -> None:
    """Raise ValueError if a delphi cache cannot hold the features of a source.

    Args:
        path: of the source, activations or features.
        tokens: how many it has; None: it does not know their ids.
        hook: where the activations are in the host model, or None.
        sequence: tokens of a sequence.
    """
    if tokens is None:
        raise ValueError(
            f"{path} does not know its tokens, which delphi shows to its explainers; harvest the activations from text"
        )
    if hook is None or hook in ("", ".", "..") or hook != Path(hook).name:
        named = "not known" if hook is None else repr(hook)
        raise ValueError(
            f"delphi keeps features in a folder named by their hook, but that of {path} is {named}; "
            "harvest the activations from text"
        )
    if not 1 <= sequence < 1 << 16:
        raise ValueError(f"a sequence must have 1 to {(1 << 16) - 1} tokens, got {sequence}")
    if tokens < sequence:
        raise ValueError(
            f"{path} has {tokens} tokens, fewer than a sequence of {sequence}; give more text or a shorter --sequence"
        )


def write_cache(
    out: Path, runs: Iterable[Run], description: Mapping[str, Any], *, sequence: int, l0: float, force: bool
) -> Cached:
    """Write a cache, which appears whole or not at all; see `write` and `output`."""
    with new_folder(out, force=force, foreign=foreign) as unfinished:
        matches = write(unfinished, runs, description, sequence=sequence, l0=l0)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cached(tokens=description["tokens"], matches=matches, size=size)


def write(
    folder: Path,
    runs: Iterable[Run],
    description: Mapping[str, Any],
    *,
    sequence: int,
    l0: float,
    file_matches: int = FILE_MATCHES,
) -> int:
    """Write features as a delphi cache, and give the number of matches.

    Args:
        folder: an empty folder.
        runs: the tokens in order; together they are whole sequences.
        description: the origin of the features; it has their `architecture`, `model`, `hook`, number of `tokens` and
            type of `values`.
        sequence: tokens of a sequence.
        l0: estimate of the mean L0, from which the number of files follows.
        file_matches: wanted number of matches in a file.

    Raises:
        ValueError: a value is too large for float16.
    """
    d_sae, tokens = int(description["architecture"]["d_sae"]), int(description["tokens"])
    files = min(max(_MIN_FILES, math.ceil(tokens * l0 / file_matches)), _MAX_FILES, d_sae)
    edges = np.linspace(0, d_sae, files + 1).astype(np.int64)
    small = max(tokens // sequence, int(np.diff(edges).max())) < 1 << 16
    integer, number = (
        np.dtype("<u2" if small else "<u4"),
        np.dtype("<f2" if description["values"] == "float16" else "<f4"),
    )
    ids: list[NDArray[np.int32]] = []
    matches = 0
    home = folder / description["hook"]
    home.mkdir()
    with ExitStack() as stack:
        # Each file of the cache needs all its locations before its values, so both go to temporary files first.
        spools = [[stack.enter_context(tempfile.TemporaryFile(dir=home)) for _ in range(2)] for _ in range(files)]
        for features, tokens_of_run in runs:
            begin = sum(map(len, ids))
            ids.append(tokens_of_run)
            matches += len(features.values)
            row, indices = np.repeat(np.arange(begin, begin + len(features)), features.l0()), features.indices
            values = rounded(features, description["values"], name=partial(_row, begin))
            of_file = np.searchsorted(edges, indices, side="right") - 1
            for file, spool in enumerate(spools):
                inside = np.flatnonzero(of_file == file)
                columns = [row[inside] // sequence, row[inside] % sequence, indices[inside] - edges[file]]
                np.stack(columns, axis=1).astype(integer).tofile(spool[0])
                values[inside].astype(number).tofile(spool[1])
        text = np.concatenate(ids).astype(np.int64).reshape(-1, sequence)
        for spool, first, end in zip(spools, edges[:-1], edges[1:], strict=True):
            tensors = {
                "locations": _read(spool[0], integer).reshape(-1, 3),
                "activations": _read(spool[1], number),
                "tokens": text,
            }
            save_tensors(home / f"{first}_{end - 1}.safetensors", tensors)
    config = {"model_name": description["model"], "cache_ctx_len": sequence, "n_tokens": tokens, "n_splits": files}
    (home / _CONFIG).write_text(json.dumps(config | {"sae_runtime": description}, indent=4) + "\n")
    return matches


def _row(begin: int, number: int) -> str:
    return f"row {begin + number}"


def _read(spool: IO[bytes], dtype: "np.dtype[Any]") -> NDArray[Any]:
    spool.seek(0)
    return np.fromfile(spool, dtype)


def _is_ours(entry: Path) -> bool:
    """Whether an entry is a hook's folder that `write` filled, and holds nothing else."""
    try:
        if not all(file.name == _CONFIG or _FEATURES.fullmatch(file.name) for file in entry.iterdir()):
            return False
        return "sae_runtime" in read_file(dict[str, Any], entry / _CONFIG)
    except (OSError, ValueError):
        return False
