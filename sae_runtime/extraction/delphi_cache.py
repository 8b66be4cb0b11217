"""Write the features of stored activations as a latent cache of EleutherAI delphi."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, check_source
from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction import delphi
from sae_runtime.extraction.array_source import CHUNK, encoded, origin
from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.extract import Rule, refuse_rule_and_values
from sae_runtime.sae import SAE


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
) -> delphi.Cached:
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
    delphi.output(out, force=force).check()
    check_source(activations, sae.manifest, any_source=any_source)
    known = None if activations.tokens is None else len(activations)
    delphi.check(activations.path, known, sae.manifest.hook or activations.hook, sequence)
    tokens = len(activations) - len(activations) % sequence
    described = {"rule": rule, "values": values, "activations": activations.path.name, "tokens": tokens}
    description = {"format_version": 1, **origin(sae, activations), **described}
    l0 = sae.manifest.measured.get("l0", sae.manifest.slots)
    with progress_bar(tokens, "tokens", shown=progress) as bar:
        runs = _runs(sae, activations, tokens, rule, bar)
        return delphi.write_cache(out, runs, description, sequence=sequence, l0=l0, force=force)


def _runs(sae: SAE, activations: Activations, tokens: int, rule: Rule, bar: Any) -> Iterator[delphi.Run]:
    """The features of the first tokens, CHUNK tokens at a time."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), tokens - bar.n))  # the batch rule reads some rows twice
        return activations.rows(ids)

    assert activations.tokens is not None  # `delphi.check` refuses activations without tokens
    together: Features | None = None
    if rule == "batch" and sae.manifest.architecture.selection == "threshold":
        together = sae.encode_batch(read, tokens)
    for begin in range(0, tokens, CHUNK):
        end = min(begin + CHUNK, tokens)
        if together is None:
            bar.update(end - begin)
        features = encoded(sae, activations, begin, end) if together is None else together[begin:end]
        yield features, activations.tokens[begin:end]
