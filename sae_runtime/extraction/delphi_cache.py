"""Write the features of stored activations as a latent cache of EleutherAI delphi."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, check_source
from sae_runtime.bundle.files import new_folder
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.bundle.outputs import Output
from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction import delphi
from sae_runtime.extraction.array_source import encoded
from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.extract import Rule, refuse_rule_and_values
from sae_runtime.extraction.feature_rows import FeatureRows, feature_rows
from sae_runtime.sae import SAE

_CHUNK = 4_096  # tokens that are read and encoded at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """Number of tokens and matches of a cache, and the bytes of its files."""

    tokens: int
    matches: int
    size: int


def cache(
    sae: SAE,
    activations: Activations,
    out: Path,
    *,
    rule: Rule = "served",
    values: Values = "float16",
    sequence: int = delphi.SEQUENCE,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Cached:
    """Write the features of every token to a folder, which appears whole or not at all.

    Args:
        sae: encodes the activations.
        activations: read and encoded piece by piece.
        out: the folder; see `delphi`.
        rule: "served" as in `SAE.encode`; "batch" as in `SAE.encode_batch`, over all activations together.
        values: type of the values in the files.
        sequence: tokens of a sequence; the tokens after the last whole sequence are left out.
        any_source: accept activations of another model or hook than those the SAE was fitted on.
        force: replace an existing folder that holds nothing but caches.
        progress: show the progress on stderr.

    Raises:
        ValueError: the activations have another d_in or source, hold NaN or Inf, or lack tokens or a hook; or a value
            is too large for float16.
        FileExistsError: `out` exists and `force` is not set, or `force` would destroy files that are not features.
    """
    refuse_rule_and_values(rule, values)
    output(out, force=force).check()
    check_source(activations, sae.manifest, any_source=any_source)
    known = None if activations.tokens is None else len(activations)
    delphi.check(activations.path, known, sae.manifest.hook or activations.hook, sequence)
    tokens = len(activations) - len(activations) % sequence
    description = _description(sae, activations, tokens, rule, values)
    with (
        new_folder(out, force=force, foreign=delphi.foreign) as unfinished,
        progress_bar(tokens, "tokens", shown=progress) as bar,
    ):
        l0 = sae.manifest.measured.get("l0", sae.manifest.slots)
        parts = _parts(sae, activations, tokens, rule, bar)
        matches = delphi.write(unfinished, parts, description, sequence=sequence, l0=l0)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cached(tokens=tokens, matches=matches, size=size)


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
    return Output(path=path, kind="folder", force=force, inputs=inputs or {}, foreign=delphi.foreign)


def _parts(sae: SAE, activations: Activations, tokens: int, rule: Rule, bar: Any) -> Iterator[FeatureRows]:
    """The features of the first tokens, _CHUNK tokens at a time."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), tokens - bar.n))  # the batch rule reads some rows twice
        return activations.rows(ids)

    together: Features | None = None
    if rule == "batch" and sae.manifest.architecture.selection == "threshold":
        together = sae.encode_batch(read, tokens)
    for begin in range(0, tokens, _CHUNK):
        end = min(begin + _CHUNK, tokens)
        if together is None:
            bar.update(end - begin)
        yield feature_rows(
            activations, begin, encoded(sae, activations, begin, end) if together is None else together[begin:end]
        )


def _description(sae: SAE, activations: Activations, tokens: int, rule: Rule, values: Values) -> dict[str, Any]:
    """The origin of the features, which is written beside them."""
    manifest = sae.manifest
    return {
        "format_version": 1,
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
