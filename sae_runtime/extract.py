"""Sparse features of many tokens to files: Parquet, CSR for scipy, or the cache of EleutherAI delphi."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_runtime import csr, delphi, parquet
from sae_runtime.activations import Activations, check_source
from sae_runtime.bundle import WEIGHTS
from sae_runtime.extras import require
from sae_runtime.feature_rows import FeatureRows, feature_rows
from sae_runtime.features import Features
from sae_runtime.files import check_free, new_file, new_folder
from sae_runtime.sae import SAE

Format = Literal["parquet", "csr", "delphi"]
Values = Literal["float32", "float16"]
FORMAT_VERSION = 1
_CHUNK = 4_096  # tokens read and encoded at once; divides a row group of Parquet


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What was written: the tokens, the matches of all of them, and the size in bytes."""

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
        out: the file, or for "delphi" the folder.
        format: "parquet", "csr" or "delphi"; see the modules of these names.
        rule: "served" as `SAE.encode`; "batch" as `SAE.encode_batch`, over all of the activations.
        values: type of the values on disk; None means float16 for "delphi", float32 for the others.
        sequence: tokens of a sequence, for "delphi", which leaves out what does not fill the last one.
        any_source: go on where the activations come from another model or hook than those the SAE was fitted on.
        force: replace what stands there already.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: the activations are of another width or source, hold NaN or Inf, or do not say what "delphi" needs;
            or a value is too large for float16.
        FileExistsError: `out` exists and `force` is not set, or it is a folder where a file should be, or holds files
            of others.
    """
    if rule not in ("served", "batch"):
        raise ValueError(f"rule must be 'served' or 'batch', got {rule!r}")
    if values not in (None, "float32", "float16"):
        raise ValueError(f"values must be 'float32' or 'float16', got {values!r}")
    if format == "csr" and values == "float16":
        raise ValueError("csr holds float32, since scipy does not compute with float16; choose --format parquet")
    check_output(out, format, force=force)
    check_source(activations, sae.manifest, any_source=any_source)
    rows = len(activations)
    if format == "delphi":
        rows -= rows % max(sequence, 1)
    description = _description(sae, activations, rows, rule, values or ("float16" if format == "delphi" else "float32"))
    if format == "delphi":
        delphi.check(activations, description["hook"], sequence)
    matches = 0

    def parts() -> Iterator[FeatureRows]:
        nonlocal matches
        for begin, features in _encoded(sae, activations, rows, rule, bar):
            matches += len(features.indices)
            yield feature_rows(activations, begin, features, description["values"])

    with contextlib.ExitStack() as stack:
        new = new_folder if format == "delphi" else new_file
        partial = stack.enter_context(new(out, force=force))
        # disable=None hides the bar where stderr is no terminal.
        bar = stack.enter_context(tqdm(total=rows, unit="token", unit_scale=True, disable=None if progress else True))
        if format == "delphi":
            l0 = sae.manifest.measured.get("l0", sae.manifest.width)
            delphi.write(partial, parts(), description, sequence=sequence, l0=l0)
        else:
            {"parquet": parquet.write, "csr": csr.write}[format](partial, parts(), description)
    written = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return Extracted(tokens=rows, matches=matches, size=sum(path.stat().st_size for path in written))


def check_output(out: Path, format: Format, *, force: bool) -> None:
    """Raise unless features may be written to `out`; to be called before long work.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: there is no such format.
        FileExistsError: `out` exists and `force` is not set, or it is a folder where a file should be, or holds files
            of others.
    """
    if format not in ("parquet", "csr", "delphi"):
        raise ValueError(f"format must be 'parquet', 'csr' or 'delphi', got {format!r}")
    if format == "parquet":
        require("extract")
    if format == "delphi":
        delphi.check_folder(out, force=force)
        return
    check_file(out, force=force)


def check_file(out: Path, *, force: bool) -> None:
    """Raise FileExistsError unless a file may be written to `out`."""
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder; name a file in it")
    check_free(out, force=force)


def _encoded(
    sae: SAE, activations: Activations, rows: int, rule: Literal["served", "batch"], bar: "tqdm[Any]"
) -> Iterator[tuple[int, Features]]:
    """Features of the first activations in order, _CHUNK tokens at a time, each with the number of its first token."""
    if rule == "batch" and sae.manifest.encoder.selection == "threshold":
        yield from _jointly_encoded(sae, activations, rows, bar)
        return
    for begin in range(0, rows, _CHUNK):
        x = activations.slice(begin, min(begin + _CHUNK, rows))
        try:
            features = sae.encode(x)
        except ValueError as error:  # which counts rows from the first of x
            raise ValueError(f"{activations.path}, from row {begin} on: {error}") from error
        bar.update(len(x))
        yield begin, features


def _jointly_encoded(sae: SAE, activations: Activations, rows: int, bar: "tqdm[Any]") -> Iterator[tuple[int, Features]]:
    """The same by the batch rule, for which every token is read before the first features are known."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), rows - bar.n))  # some rows are read again in the end
        return activations.rows(ids)

    joint = sae.encode_batch(read, rows)
    for begin in range(0, rows, _CHUNK):
        yield begin, joint[begin : begin + _CHUNK]


def _description(sae: SAE, activations: Activations, rows: int, rule: str, values: str) -> dict[str, Any]:
    """The description of the features, which the file holds."""
    manifest = sae.manifest
    return {
        "format_version": FORMAT_VERSION,
        "encoder": dataclasses.asdict(manifest.encoder),
        "allocation": manifest.allocation and dataclasses.asdict(manifest.allocation),
        "model": manifest.model or activations.model,
        "hook": manifest.hook or activations.hook,
        "weights_sha256": manifest.files[WEIGHTS].sha256,
        "rule": rule,
        "values": values,
        "activations": activations.path.name,
        "tokens": rows,
    }
