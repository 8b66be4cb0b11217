"""Sparse features of many tokens in the layout of EleutherAI delphi's latent cache, for its explainers and scorers.

A folder of the hook's name holds `config.json` and, for each run of features, `{first}_{last}.safetensors` with

    locations    [matches, 3]: sequence, position in it, feature counted from the first; uint16, or uint32 if needed
    activations  [matches]: float16, as delphi itself writes them, or float32
    tokens       [sequences, length]: int64, the same in each file

in the order of the tokens. As in delphi's own caches, all sequences have one length and may cross the ends of
documents; the tokens after the last whole sequence are left out.
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

from sae_runtime.activations.stored import Activations
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.extraction.feature_rows import FeatureRows

SEQUENCE = 256  # tokens, as in delphi
FILE_MATCHES = 1 << 24  # of a file, about: delphi's readers hold a whole file in memory
_MIN_FILES = 5  # as in delphi
_MAX_FILES = 200  # two temporary files are open for each
_CONFIG = "config.json"


def foreign(out: Path) -> str | None:
    """The name of an entry of a folder that is not a cache of `write`, or None if all are.

    >>> Path("empty").mkdir(exist_ok=True)
    >>> foreign(Path("empty"))
    """
    return next((entry.name for entry in sorted(out.iterdir()) if not _is_ours(entry)), None)


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
            "harvest the activations, or choose --format parquet"
        )
    if hook is None or hook in ("", ".", "..") or hook != Path(hook).name:
        named = "not known" if hook is None else repr(hook)
        raise ValueError(
            f"delphi keeps features in a folder named by their hook, but that of {activations.path} is {named}; "
            "harvest the activations, or choose --format parquet"
        )
    if not 1 <= sequence < 1 << 16:
        raise ValueError(f"a sequence must have 1 to {(1 << 16) - 1} tokens, got {sequence}")
    if len(activations) < sequence:
        raise ValueError(
            f"{activations.path} has {len(activations)} tokens, fewer than a sequence of {sequence}; "
            "give more activations or a shorter --sequence"
        )


def write(
    folder: Path,
    parts: Iterable[FeatureRows],
    description: Mapping[str, Any],
    *,
    sequence: int,
    l0: float,
    file_matches: int = FILE_MATCHES,
) -> None:
    """Write features as a cache of delphi's.

    Args:
        folder: an empty folder.
        parts: the features in order, with tokens; together they are whole sequences.
        description: what the features are, with their `architecture`, `model`, `hook`, number of `tokens` and `values`.
        sequence: tokens of a sequence.
        l0: active features of a token on average, about.
        file_matches: matches of a file, about.
    """
    d_sae, tokens = int(description["architecture"]["d_sae"]), int(description["tokens"])
    files = min(max(_MIN_FILES, math.ceil(tokens * l0 / file_matches)), _MAX_FILES, d_sae)
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
            assert part.tokens is not None  # `check` refuses activations without tokens
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
    """Append the matches of some tokens to the temporary files of each run of features."""
    row = np.repeat(np.arange(part.begin, part.end), np.diff(part.indptr))
    of_file = np.searchsorted(edges, part.indices, side="right") - 1
    for file, (locations, values) in enumerate(spools):
        inside = np.flatnonzero(of_file == file)
        columns = [row[inside] // sequence, row[inside] % sequence, part.indices[inside] - edges[file]]
        np.stack(columns, axis=1).astype(integer).tofile(locations)
        part.values[inside].astype(number).tofile(values)


def _read(spool: IO[bytes], dtype: "np.dtype[Any]") -> NDArray[Any]:
    spool.seek(0)
    return np.fromfile(spool, dtype)


def _is_ours(entry: Path) -> bool:
    """Whether an entry is a hook's folder that `write` filled."""
    try:
        return "sae_runtime" in read_json(dict[str, Any], (entry / _CONFIG).read_bytes(), _CONFIG)
    except (OSError, ValueError):
        return False
