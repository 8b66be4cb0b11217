"""Write sparse features of many tokens: to a Parquet file, or to the latent cache of EleutherAI delphi."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, check_source
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import new_file, new_folder
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.bundle.outputs import Output, refuse_inputs
from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction import delphi, parquet
from sae_runtime.extraction.feature_rows import FeatureRows, feature_rows
from sae_runtime.sae import SAE

Format = Literal["parquet", "delphi"]
Values = Literal["float32", "float16"]
FORMAT_VERSION = 1
_CHUNK = 4_096  # tokens read and encoded at once; divides a row group of Parquet


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What was written: the number of tokens and of their matches, and the size in bytes."""

    tokens: int
    matches: int
    size: int


def extract(
    sae: SAE,
    activations: Activations,
    out: Path,
    *,
    format: Format = "parquet",
    rule: Literal["served", "batch"] = "served",
    values: Values | None = None,
    sequence: int = delphi.SEQUENCE,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Extracted:
    """Write the features of every token to a file or folder, which appears whole or not at all.

    Args:
        sae: what to encode with.
        activations: read and encoded piece by piece.
        out: the .parquet file, or for "delphi" the folder.
        format: "parquet" or "delphi"; see the modules of these names.
        rule: "served" as `SAE.encode`; "batch" as `SAE.encode_batch`, over all activations together.
        values: type of the values on disk; None means float16 for "delphi" and float32 for "parquet".
        sequence: tokens of a sequence for "delphi"; the tokens after the last whole sequence are left out.
        any_source: accept activations of another model or hook than those the SAE was fitted on.
        force: replace what exists at `out`; see `output`.
        progress: show the progress on stderr.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: the activations have another d_in or source, hold NaN or Inf, or lack what "delphi" needs; a value
            is too large for float16; or the name of `out` does not fit the format.
        FileExistsError: `out` exists and `force` is not set, or `force` would destroy other files than features.

    >>> from sae_runtime import load, open_activations
    >>> made = extract(load(bundle_path), open_activations(activations_path), Path("extracted.parquet"))
    >>> made.tokens
    600
    """
    if rule not in ("served", "batch"):
        raise ValueError(f"rule must be 'served' or 'batch', got {rule!r}")
    if values not in (None, "float32", "float16"):
        raise ValueError(f"values must be 'float32' or 'float16', got {values!r}")
    output(out, format, force=force).check()
    check_source(activations, sae.manifest, any_source=any_source)
    to_delphi = format == "delphi"
    rows = len(activations)
    if to_delphi:
        rows -= rows % max(sequence, 1)
    description = _description(sae, activations, rows, rule, values or ("float16" if to_delphi else "float32"))
    if to_delphi:
        delphi.check(activations, description["hook"], sequence)
    matches = 0

    def parts() -> Iterator[FeatureRows]:
        nonlocal matches
        for begin, features in _encoded(sae, activations, rows, rule, bar):
            matches += len(features.indices)
            yield feature_rows(activations, begin, features, description["values"])

    new = new_folder if to_delphi else new_file
    with new(out, force=force) as partial, progress_bar(rows, "tokens", shown=progress) as bar:
        if to_delphi:
            l0 = sae.manifest.measured.get("l0", sae.manifest.slots)
            delphi.write(partial, parts(), description, sequence=sequence, l0=l0)
        else:
            parquet.write(partial, parts(), description)
    written = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return Extracted(tokens=rows, matches=matches, size=sum(path.stat().st_size for path in written))


def output(path: Path, format: Format, *, force: bool, inputs: Mapping[str, Path] | None = None) -> Output:
    """Where features of a format go, to be checked before long work.

    Args:
        path: a name that ends in .parquet for "parquet", and that does not for "delphi".
        format: "parquet" or "delphi".
        force: replace what exists there; of folders, only caches for delphi that `extract` wrote.
        inputs: as of `Output`.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: the path is, holds or lies in an input, or the format is unknown or does not fit the name.

    >>> output(Path("features.csv"), "parquet", force=False)
    Traceback (most recent call last):
    ValueError: features.csv does not end in .parquet; name a .parquet file, or a folder with --format delphi
    """
    if format not in ("parquet", "delphi"):
        raise ValueError(f"format must be 'parquet' or 'delphi', got {format!r}")
    refuse_inputs(path, inputs or {})
    if format == "delphi":
        if path.suffix == ".parquet":
            raise ValueError(
                f"{path} ends in .parquet, but delphi reads a folder; name a folder, or leave out --format"
            )
        return Output(path=path, kind="folder", force=force, foreign=delphi.foreign)
    if path.suffix != ".parquet" and not path.is_dir() and str(path) != "-":
        raise ValueError(f"{path} does not end in .parquet; name a .parquet file, or a folder with --format delphi")
    require("extract")
    return Output(path=path, kind="file", force=force)


def _encoded(
    sae: SAE, activations: Activations, rows: int, rule: Literal["served", "batch"], bar: Any
) -> Iterator[tuple[int, Features]]:
    """Features of the first rows, _CHUNK tokens at a time, with the number of the first token of each part."""
    if rule == "batch" and sae.manifest.architecture.selection == "threshold":
        yield from _jointly_encoded(sae, activations, rows, bar)
        return
    for begin in range(0, rows, _CHUNK):
        x = activations.slice(begin, min(begin + _CHUNK, rows))
        try:
            features = sae.encode(x)
        except ValueError as error:  # its row numbers begin at the first row of x
            raise ValueError(f"{activations.path}, from row {begin} on: {error}") from error
        bar.update(len(x))
        yield begin, features


def _jointly_encoded(sae: SAE, activations: Activations, rows: int, bar: Any) -> Iterator[tuple[int, Features]]:
    """The same by the batch rule, which reads every token before it knows the features of the first."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), rows - bar.n))  # some rows are read twice
        return activations.rows(ids)

    joint = sae.encode_batch(read, rows)
    for begin in range(0, rows, _CHUNK):
        yield begin, joint[begin : begin + _CHUNK]


def _description(sae: SAE, activations: Activations, rows: int, rule: str, values: str) -> dict[str, Any]:
    """What the features of the first rows are, to be written beside them."""
    manifest = sae.manifest
    return {
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(manifest.architecture),
        "allocation": manifest.allocation and dataclasses.asdict(manifest.allocation),
        "model": manifest.model or activations.model,
        "hook": manifest.hook or activations.hook,
        "weights_sha256": manifest.files[WEIGHTS].sha256,
        "rule": rule,
        "values": values,
        "activations": activations.path.name,
        "tokens": rows,
    }
