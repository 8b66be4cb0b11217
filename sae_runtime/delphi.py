"""Sparse features of many tokens in the layout of EleutherAI delphi's latent cache, for its explainers and scorers.

A folder of the hook's name holds `config.json` and, for each run of latents, `{first}_{last}.safetensors` with

    locations    [matches, 3]: sequence, position in it, latent counted from the first; uint16, or uint32 where needed
    activations  [matches]: float16, as delphi itself writes them, or float32
    tokens       [sequences, length]: int64, the same in each file

in order of the tokens. As in delphi's own caches, a sequence is a run of the text of one length, across the ends of
documents; tokens that do not fill the last one are left out.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations import Activations
from sae_runtime.feature_rows import FeatureRows
from sae_runtime.files import check_free
from sae_runtime.tensors import save_tensors

SEQUENCE = 256  # tokens, as in delphi
_FILES = 5  # at least, as in delphi
_MATCHES = 1 << 24  # of a file, about: its readers hold all of them at once
_MOST_FILES = 200  # two are open for each
_CONFIG = "config.json"


def check_folder(out: Path, *, force: bool) -> None:
    """Raise FileExistsError unless a cache may be written to `out`: `force` replaces a cache of ours, nothing else."""
    if out.is_dir() and force:
        for entry in sorted(out.iterdir()):
            if not _is_ours(entry):
                raise FileExistsError(f"{out} holds {entry.name}, which extract did not write; name another folder")
    elif out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    check_free(out, force=force)


def check(activations: Activations, hook: str | None, sequence: int) -> None:
    """Raise ValueError unless features of these activations can be in a cache.

    Args:
        activations: to be extracted.
        hook: where they come from, as far as known.
        sequence: tokens of a sequence.
    """
    if activations.tokens is None:
        raise ValueError(
            f"{activations.path} does not know its tokens, which delphi shows to its explainers; "
            "harvest the activations, or choose --format parquet or csr"
        )
    if hook is None or hook in ("", ".", "..") or hook != Path(hook).name:
        raise ValueError(
            f"delphi keeps features in a folder named by their hook, but that of {activations.path} is {hook!r}; "
            "harvest the activations, or choose --format parquet or csr"
        )
    if not 1 <= sequence < 1 << 16:
        raise ValueError(f"a sequence must have 1 to {(1 << 16) - 1} tokens, got {sequence}")
    if len(activations) < sequence:
        raise ValueError(
            f"{activations.path} has {len(activations)} tokens, fewer than a sequence of {sequence}; "
            "give more activations or a shorter --sequence"
        )


def write(
    folder: Path, parts: Iterable[FeatureRows], description: Mapping[str, Any], *, sequence: int, l0: float
) -> None:
    """Write features as a cache of delphi's.

    Args:
        folder: which is empty.
        parts: in order, with tokens; together they are whole sequences.
        description: what the features are, with their `encoder`, `model`, `hook`, number of `tokens` and `values`.
        sequence: tokens of a sequence.
        l0: matches a token, about.
    """
    d_sae, tokens = int(description["encoder"]["d_sae"]), int(description["tokens"])
    files = min(max(_FILES, math.ceil(tokens * l0 / _MATCHES)), _MOST_FILES, d_sae)
    edges = np.linspace(0, d_sae, files + 1).astype(np.int64)
    small = max(tokens // sequence, int(np.diff(edges).max())) < 1 << 16
    integer = np.dtype("<u2" if small else "<u4")
    number = np.dtype("<f2" if description["values"] == "float16" else "<f4")
    ids: list[NDArray[np.int32]] = []
    home = folder / description["hook"]
    home.mkdir()
    with ExitStack() as stack:
        spools = [[stack.enter_context(tempfile.TemporaryFile(dir=home)) for _ in range(2)] for _ in range(files)]
        for part in parts:
            assert part.tokens is not None  # `check` saw to it
            ids.append(part.tokens)
            _spool(part, spools, edges, sequence, integer, number)
        text = np.concatenate(ids).astype(np.int64).reshape(-1, sequence)
        for (locations, values), first, end in zip(spools, edges[:-1], edges[1:], strict=True):
            tensors = {
                "locations": _read(locations, integer).reshape(-1, 3),
                "activations": _read(values, number),
                "tokens": text,
            }
            save_tensors(home / f"{first}_{end - 1}.safetensors", tensors)
    config = {
        "model_name": description["model"],
        "cache_ctx_len": sequence,
        "n_tokens": tokens,
        "n_splits": files,
        "sae_runtime": description,
    }
    (home / _CONFIG).write_text(json.dumps(config, indent=4) + "\n")


def _spool(
    part: FeatureRows,
    spools: Sequence[Sequence[IO[bytes]]],
    edges: NDArray[np.int64],
    sequence: int,
    integer: "np.dtype[Any]",
    number: "np.dtype[Any]",
) -> None:
    """Put the matches of some tokens into the files that wait for each run of latents."""
    row = np.repeat(np.arange(part.begin, part.end), np.diff(part.indptr))
    of_file = np.searchsorted(edges, part.indices, side="right") - 1
    for file, (locations, values) in enumerate(spools):
        mine = np.flatnonzero(of_file == file)
        where = [row[mine] // sequence, row[mine] % sequence, part.indices[mine] - edges[file]]
        np.stack(where, axis=1).astype(integer).tofile(locations)
        part.values[mine].astype(number).tofile(values)


def _read(spool: IO[bytes], dtype: "np.dtype[Any]") -> NDArray[Any]:
    spool.seek(0)
    return np.fromfile(spool, dtype)


def _is_ours(entry: Path) -> bool:
    """Whether a folder is the one of a hook that `write` filled."""
    try:
        return "sae_runtime" in json.loads((entry / _CONFIG).read_text())
    except (OSError, ValueError, TypeError):
        return False
