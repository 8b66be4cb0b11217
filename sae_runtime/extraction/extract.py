"""Write sparse features of many tokens: to a Parquet file, or to the latent cache of EleutherAI delphi."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, check_source
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import new_file, new_folder
from sae_runtime.bundle.folder import WEIGHTS, BundleError
from sae_runtime.bundle.outputs import Output, refuse_inputs
from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction import delphi, parquet
from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.feature_rows import FeatureRows, feature_rows
from sae_runtime.sae import SAE

Format = Literal["parquet", "delphi"]
Rule = Literal["served", "batch"]
FORMAT_VERSION = 1
_VALUES: dict[str, Values] = {"parquet": "float32", "delphi": "float16"}  # if the caller names no type
_CHUNK = 4_096  # tokens that are read and encoded at once; it divides a row group of Parquet


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """Number of tokens and matches that `extract` wrote, and the bytes of its files."""

    tokens: int
    matches: int
    size: int


def extract(
    sae: SAE,
    activations: Activations,
    out: Path,
    *,
    format: Format = "parquet",
    rule: Rule = "served",
    values: Values | None = None,
    sequence: int = delphi.SEQUENCE,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Extracted:
    """Write the features of every token to a file or folder, which appears whole or not at all.

    Args:
        sae: encodes the activations.
        activations: read and encoded piece by piece.
        out: the .parquet file, or for "delphi" the folder.
        format: "parquet" or "delphi"; see the modules of these names.
        rule: "served" as in `SAE.encode`; "batch" as in `SAE.encode_batch`, over all activations together.
        values: type of the values in the files; None means float16 for "delphi" and float32 for "parquet".
        sequence: tokens of a sequence of "delphi", which leaves out the tokens after the last whole sequence.
        any_source: accept activations of another model or hook than those the SAE was fitted on.
        force: replace an existing output; see `output`.
        progress: show the progress on stderr.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: the activations have another d_in or source, hold NaN or Inf, or lack tokens or a hook for "delphi";
            a value is too large for float16; or the name of `out` does not fit the format.
        FileExistsError: `out` exists and `force` is not set, or `force` would destroy files that are not features.

    >>> from sae_runtime import open_activations
    >>> extract(sae, open_activations(activations_path), Path("extracted.parquet")).tokens
    600
    """
    for name, value, known in (("rule", rule, ("served", "batch")), ("values", values, ("float32", "float16", None))):
        if value not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {value!r}")
    output(out, format, force=force).check()
    check_source(activations, sae.manifest, any_source=any_source)
    tokens = len(activations)
    new = new_file if format == "parquet" else partial(new_folder, foreign=delphi.foreign)
    if format == "delphi":
        delphi.check(activations, sae.manifest.hook or activations.hook, sequence)
        tokens -= tokens % sequence
    description = _description(sae, activations, tokens, rule, values or _VALUES[format])
    with new(out, force=force) as unfinished, progress_bar(tokens, "tokens", shown=progress) as bar:
        parts = _encoded(sae, activations, tokens, rule, bar)
        if format == "delphi":
            l0 = sae.manifest.measured.get("l0", sae.manifest.slots)
            matches = delphi.write(unfinished, parts, description, sequence=sequence, l0=l0)
        else:
            matches = parquet.write(unfinished, parts, description)
    files = [path for path in (out, *out.rglob("*")) if path.is_file()]
    return Extracted(tokens=tokens, matches=matches, size=sum(path.stat().st_size for path in files))


def output(path: Path, format: Format, *, force: bool, inputs: Mapping[str, Path] | None = None) -> Output:
    """The output of `extract`, which callers check before long work.

    Args:
        path: a name that ends in .parquet for "parquet", and another name for "delphi".
        format: "parquet" or "delphi".
        force: replace an existing file, or an existing folder that holds nothing but delphi caches of `extract`.
        inputs: see `Output`.

    Raises:
        ImportError: pyarrow is not installed, which Parquet needs.
        ValueError: the path is, holds or is inside an input, or the format is unknown or does not fit the name.

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


def _encoded(sae: SAE, activations: Activations, tokens: int, rule: Rule, bar: Any) -> Iterator[FeatureRows]:
    """The features of the first tokens, _CHUNK tokens at a time."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), tokens - bar.n))  # the batch rule reads some rows twice
        return activations.rows(ids)

    together: Features | None = None
    if rule == "batch" and sae.manifest.architecture.selection == "threshold":
        together = sae.encode_batch(read, tokens)
    for begin in range(0, tokens, _CHUNK):
        end = min(begin + _CHUNK, tokens)
        if together is not None:
            features = together[begin:end]
        else:
            x = activations.slice(begin, end)
            try:
                features = sae.encode(x)
            except BundleError:  # no row is at fault
                raise
            except ValueError as error:  # it counts rows from `begin`
                raise ValueError(f"{activations.path}, from row {begin} on: {error}") from error
            bar.update(end - begin)
        yield feature_rows(activations, begin, features)


def _description(sae: SAE, activations: Activations, tokens: int, rule: Rule, values: Values) -> dict[str, Any]:
    """The origin of the features, which is written beside them."""
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
        "tokens": tokens,
    }
