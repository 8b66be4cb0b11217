"""Build a feature store from features on disk: out of core, with numpy and pyarrow."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle import folder as bundle_folder
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import new_folder
from sae_runtime.bundle.hub import local
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.labels import copy_labels
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.parts import record
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction.feature_index import INDEX
from sae_runtime.extraction.stored_features import StoredFeatures, read_features
from sae_runtime.store.choosing import choose
from sae_runtime.store.counts import Counts
from sae_runtime.store.descriptions import check_weights, read_description
from sae_runtime.store.gather import Sample, gather
from sae_runtime.store.matches import LIMIT, Bucket, Buckets, even_bounds, falling, small_enough
from sae_runtime.store.names_of_tokens import read_vocabulary
from sae_runtime.store.relatives import Relatives, neighbours, together
from sae_runtime.store.rows import SAME_TEXT, Rows
from sae_runtime.store.schema import (
    CONTEXTS,
    FEATURES,
    FORMAT_VERSION,
    NAMES,
    STORE,
    VOCABULARY,
    Description,
    StoredFile,
)
from sae_runtime.store.table_files import footer_sha256
from sae_runtime.store.tables import StoreTables
from sae_runtime.store.tallies import tallied

_PAIRS = 1 << 28  # pairs of matches of the sample, by which it is smaller for an SAE with many active features


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build_store` wrote: features, contexts, bytes of all files, and what the store lacks, and why."""

    features: int
    active: int
    contexts: int
    size: int
    left_out: tuple[str, ...]


def build_store(
    features: str | Path,
    out: Path,
    *,
    sae: str | Path | None = None,
    names: Mapping[int, str] | None = None,
    licence: str | None = None,
    context: int = 64,
    bands: int = 5,
    top: int = 20,
    per_band: int = 5,
    bins: int = 20,
    sample: int = 100_000,
    limit: int = LIMIT,
    force: bool = False,
    progress: bool = False,
) -> Built:
    """Build a feature store. It appears whole or not at all, and the same input gives the same bytes.

    All numbers are exact, over all rows; co-firing alone is counted on a sample. Memory does not grow with the corpus:
    matches lie in temporary files beside the output, some 20 bytes each, and are read back feature by feature.

    Args:
        features: a finished folder that `extract` wrote. Of features per document, the rows are documents: densities
            are shares of the documents, and contexts are the beginnings of the largest documents.
        out: the folder to make.
        sae: the bundle that the features come from, for neighbours, promoted tokens and labels. That of a deployed
            model knows the promoted tokens.
        names: names of tokens by id, where the folder has none, as that of activations.
        licence: of documents whose licence the folder does not know.
        context: tokens of a context.
        bands: quantile bands of the active values.
        top: contexts of the top band.
        per_band: contexts of each other band.
        bins: of the histograms.
        sample: tokens that co-firing is counted on, evenly spaced; 0: it is not counted.
        limit: matches that are in memory at once.
        force: replace an existing store; labels that people gave to it are kept.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or holds what is not of a store.
        ImportError: pyarrow is not installed.
        ValueError: the features are not finished, or a part of them is missing or altered; the bundle has other
            weights; or a setting is out of range.

    >>> build_store(features_path, Path("store"), sae=bundle_path, context=8).features
    150
    """
    require("extract")
    settings = {"context": context, "bands": bands, "top": top, "per_band": per_band, "bins": bins, "limit": limit}
    for name, value in settings.items():
        if value < 1 or (name == "bands" and value > 100):
            raise ValueError(f"{name} must be {'1 to 100' if name == 'bands' else '1 or more'}, got {value}")
    if sample < 0:
        raise ValueError(f"sample must be 0 or more tokens, got {sample}")
    sae = None if sae is None else local(sae)
    inputs = {"features": Path(features)} | ({} if sae is None else {"bundle": sae})
    store_output(out, force=force, inputs=inputs).check()
    stored = read_features(features)
    weights = stored.description.get("weights_sha256")
    bundle = None
    if sae is not None:
        check_weights(str(weights), sae, stored.path)
        bundle = bundle_folder.read(sae)
    per_bands = (top, *[per_band] * (bands - 1))
    width = context if stored.per == "token" else 1
    every = _every(stored, sample)
    vocabulary = dict(names or {}) or read_vocabulary(stored.path)
    left_out: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(out, force=force, foreign=foreign))
        bar = stack.enter_context(progress_bar(len(stored) + stored.d_sae, "steps", shown=progress))
        work = folder / "work"
        work.mkdir()
        with Buckets(work, even_bounds(stored.d_sae, stored.matches, limit)) as buckets:
            rows, sampled, counts = gather(stored, work, buckets, every=every, progress=bar.update)
        relatives = _relatives(bundle, sampled, stored.d_sae)
        logits = None if bundle is None else bundle.logits()
        tables = stack.enter_context(
            StoreTables(folder, rows, vocabulary, relatives, logits, licence=licence, bins=bins)
        )
        for bucket in (part for whole in buckets.buckets() for part in small_enough(whole, limit)):
            chunks = _Chunks(bucket, limit)
            tally = tallied(chunks, bucket.low, bucket.high, bins)
            chosen = choose(falling(bucket, limit), rows, bucket.low, tally.count, per_bands, max(width // 2, 1))
            tables.put(bucket.low, tally, chosen, chunks, width)
            bar.update(bucket.high - bucket.low)
        tables.done()
        left_out = _left_out(stored, bundle, rows, vocabulary, sampled, logits)
        _put_labels(folder, out, sae, str(weights))
        shutil.rmtree(work)
        described = _description(stored, rows, tables, left_out, sampled, counts, per_bands, width, bins, licence)
        _write_description(folder, described)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Built(
        features=stored.d_sae, active=tables.active, contexts=tables.contexts, size=size, left_out=tuple(left_out)
    )


def store_output(path: Path, *, force: bool, inputs: Mapping[str, Path] | None = None) -> Output:
    """The output of `build_store`, which callers check before long work.

    >>> store_output(Path("new-store"), force=False).check()
    """
    return Output(path=path, kind="folder", force=force, inputs=inputs or {}, foreign=foreign)


def foreign(folder: Path) -> str | None:
    """The name of an entry of a folder that is none of a store's, or None."""
    entries = sorted(entry.name for entry in folder.iterdir())
    return next((name for name in entries if name not in NAMES or STORE not in entries), None)


class _Chunks:
    """The matches of a bucket, again and again."""

    def __init__(self, bucket: Bucket, limit: int) -> None:
        self._bucket, self._limit = bucket, limit

    def __iter__(self) -> Iterator[Any]:
        return self._bucket.chunks(self._limit)


def _every(stored: StoredFeatures, sample: int) -> int | None:
    """Of how many rows one is sampled for co-firing; None: none is."""
    if not sample:
        return None
    l0 = stored.matches / max(len(stored), 1)
    most = min(sample, int(_PAIRS / max(l0 * l0, 1)))
    return max(-(-len(stored) // max(most, 1)), 1)


def _relatives(bundle: Any, sampled: Sample | None, d_sae: int) -> tuple[Relatives | None, Relatives | None]:
    """Neighbours and features that are active together, of each feature."""
    near = None if bundle is None else neighbours(bundle.tensor("W_dec"))
    return near, None if sampled is None else together(sampled.features, d_sae)


def _left_out(
    stored: StoredFeatures, bundle: Any, rows: Rows, vocabulary: Mapping[int, str], sampled: Sample | None, logits: Any
) -> list[str]:
    """What the store lacks, a sentence each."""
    sentences = []
    if bundle is None:
        sentences.append("no neighbours, promoted tokens and labels of a bundle: no bundle was named (--sae)")
    elif logits is None:
        sentences.append(
            "no promoted tokens: the bundle has none (splice writes them where the model has a float head for text)"
        )
    if sampled is None:
        sentences.append("no features that are active together: they were not counted")
    if not len(rows.texts):
        sentences.append("no texts: the features were extracted without them")
        if not vocabulary and stored.per == "token":
            sentences.append("no names of tokens, but their ids: name the folder of the tokenizer (--tokenizer)")
    if stored.per == "document":
        sentences.append("no tokens: the rows of the features are documents")
    return sentences


def _put_labels(folder: Path, out: Path, sae: str | Path | None, weights: str) -> None:
    """Copy the labels of the store that is replaced, else those of the bundle."""
    if (out / LABELS).is_file():
        if read_description(out).weights_sha256 != weights:
            raise FileExistsError(f"{out} holds {LABELS} of another SAE, which would be lost; name another output")
        copy_labels(out, folder)
    elif sae is not None:
        copy_labels(Path(sae), folder)


def _description(
    stored: StoredFeatures,
    rows: Rows,
    tables: StoreTables,
    left_out: list[str],
    sampled: Sample | None,
    counts: Counts,
    per_band: tuple[int, ...],
    context: int,
    bins: int,
    licence: str | None,
) -> Description:
    def fact(name: str) -> str | None:
        value = stored.description.get(name)
        return value if isinstance(value, str) else None

    files = {
        name: StoredFile(**asdict(record(tables.folder / name)), footer_sha256=footer_sha256(tables.folder / name))
        for name in (FEATURES, CONTEXTS, VOCABULARY)
    }
    return Description(
        format_version=FORMAT_VERSION,
        per=stored.per,
        **{name: fact(name) for name in ("model", "hook", "sae")},
        weights_sha256=str(stored.description.get("weights_sha256")),
        features_sha256=record(stored.path / INDEX).sha256,
        d_sae=stored.d_sae,
        tokens=len(stored),
        documents=len(rows.docs) or len(rows.runs) - 1,
        matches=stored.matches,
        values=str(stored.description["values"]),
        context=context,
        bands=len(per_band),
        per_band=per_band,
        bins=bins,
        same_text=SAME_TEXT,
        sampled=None if sampled is None else {"tokens": len(sampled.features), "every": sampled.every},
        left_out=tuple(left_out),
        licence=licence or fact("licence"),
        files=files,
        active=tuple(counts.active.tolist()),
        by_file=counts.most("file"),
        by_licence=counts.most("licence", licence or fact("licence")),
    )


def _write_description(folder: Path, described: Description) -> None:
    (folder / STORE).write_text(json.dumps(asdict(described), indent=2) + "\n")
