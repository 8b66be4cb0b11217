"""Write features of a folder, of texts too, as a latent cache of EleutherAI delphi."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction import delphi
from sae_runtime.extraction.stored_features import StoredFeatures

_COLUMNS = ("token", "indices", "values")


def write_delphi(
    features: StoredFeatures,
    out: Path,
    *,
    values: Literal["float16", "float32"] = "float16",
    sequence: int = delphi.SEQUENCE,
    force: bool = False,
    progress: bool = False,
) -> delphi.Cached:
    """Write stored features to a folder that delphi reads, which appears whole or not at all.

    All sequences have one length and may cross the ends of documents, as in delphi's own caches. The tokens after the
    last whole sequence are left out.

    Args:
        features: of tokens.
        out: the folder; see `delphi`.
        values: type of the activations in the files; delphi itself writes float16.
        sequence: tokens of a sequence.
        force: replace an existing folder that holds nothing but caches.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or `force` would destroy files that are not of a cache.
        ValueError: the rows are of documents, the tokens or the hook are not known, there are fewer tokens than a
            sequence has, a value is too large for float16, or a part was altered.

    >>> from sae_runtime.extraction.stored_features import read_features
    >>> write_delphi(read_features(features_path), Path("cache"))
    Traceback (most recent call last):
    ValueError: ... does not know its tokens, which delphi shows to its explainers; harvest the activations from text
    """
    described = features.description
    if features.per == "document":
        raise ValueError(f"{features.path} has a row for each document, but delphi reads tokens; extract --per token")
    delphi.output(out, force=force, inputs={"features": features.path}).check()
    known = all(part.table(["token"]).column("token").null_count == 0 for part in features.parts[:1])
    delphi.check(features.path, len(features) if known else None, described.get("hook"), sequence)
    tokens = len(features) - len(features) % sequence
    architecture = described.get("architecture") or {"d_sae": features.d_sae}  # none where the bundle is not there
    of_all = {"model": None, **described, "architecture": architecture, "values": values, "tokens": tokens}
    with progress_bar(tokens, "tokens", shown=progress) as bar:
        runs = _runs(features, tokens, bar)
        return delphi.write_cache(
            out, runs, of_all, sequence=sequence, l0=features.matches / len(features), force=force
        )


def _runs(features: StoredFeatures, tokens: int, bar: Any) -> Iterator[delphi.Run]:
    """The first tokens, a part of the folder at a time."""
    left = tokens
    for part in features.parts:
        table = part.table(_COLUMNS).slice(0, left)
        if table.column("token").null_count:
            raise ValueError(f"{features.path} does not know all of its tokens; harvest the activations from text")
        yield features.to_features(table), table.column("token").to_numpy()
        left -= len(table)
        bar.update(len(table))
