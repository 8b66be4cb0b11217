"""A bundle on disk: one folder with the weights of an SAE, its manifest and its graphs.

Training, export and the runtime share nothing but bundles. If SAELens computes the same features, the folder is a
SAELens folder too.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import file_set, files, labels
from sae_runtime.bundle.card import card
from sae_runtime.bundle.identity import identity
from sae_runtime.bundle.licences import LICENCE
from sae_runtime.bundle.manifest import Manifest, to_json
from sae_runtime.bundle.opened import Bundle, BundleChanged, BundleError
from sae_runtime.bundle.parts import (
    DERIVED,
    MANIFEST,
    NAMES,
    SAMPLE,
    STATS,
    WEIGHTS,
    checked_specs,
    read_manifest,
    record,
    weight_shapes,
)
from sae_runtime.bundle.ready import refuse_ready
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.bundle.sae_lens_cfg import CFG, check_cfg, sae_lens_cfg
from sae_runtime.bundle.sealed import CARD, may_write
from sae_runtime.bundle.siblings import is_there, repaired
from sae_runtime.bundle.splices import reader_of
from sae_runtime.bundle.stats import Stats, save_stats
from sae_runtime.bundle.tensors import Streamed, save_tensors

# These names are made elsewhere, and whoever reads or writes bundles needs them too.
__all__ = ["DERIVED", "MANIFEST", "SAMPLE", "WEIGHTS", "Bundle", "BundleChanged", "BundleError", "record"]
__all__ += ["weight_shapes"]

_TRIES = 20  # of a reader, while writers replace the bundle
_PAUSE = 0.02  # seconds at most before the next try

T = TypeVar("T")


def read(path: str | Path, *, verify: bool = True, calibrated: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the folder.
        verify: compare hashes and look for numbers that are not finite; if False, check sizes and shapes alone.
        calibrated: refuse a bundle that lacks its threshold.

    Raises:
        BundleError: a file is missing, altered, of another version, or does not fit the others; or writers replace the
            bundle again and again.

    >>> bundle = read(bundle_path)
    >>> bundle.tensor("W_enc").shape
    (24, 150)
    """
    return settled(Path(path), lambda: _read_once(Path(path), verify=verify, calibrated=calibrated))


def settled(path: Path, reader: Callable[[], T]) -> T:
    """What a reader of a bundle gives, called again while the bundle is replaced under it.

    Raises:
        BundleError: it was replaced each time.

    >>> settled(Path(bundle_path), lambda: read(bundle_path).manifest.slots)
    24
    """
    last: BundleChanged | None = None
    for _ in range(_TRIES):
        try:
            return reader()
        except BundleChanged as error:
            last = error
            time.sleep(random.uniform(0, _PAUSE))
    if (path / file_set.STAGED).exists() and not os.access(path, os.W_OK):
        raise BundleError(
            f"{path} holds {file_set.STAGED}, which a writer left unfinished; run sae-runtime inspect {path} as a user "
            "who may write there"
        ) from last
    raise BundleError(f"{path} changes again and again while it is read; load it when its writer is done") from last


def _read_once(path: Path, *, verify: bool, calibrated: bool) -> Bundle:
    """Read and check a bundle; raise `BundleChanged` if a writer replaced it meanwhile."""
    path = repaired(path)
    file_set.finish(path, last=MANIFEST)
    begun = identity(path / MANIFEST)
    try:
        manifest = read_manifest(path)
        seen = {name: identity(path / name) for name in (MANIFEST, *manifest.files)}
        bundle = Bundle(path, manifest, checked_specs(path, manifest, verify=verify))
        bundle.checked.update((name, known) for name, known in seen.items() if known is not None)
        derived = seen.get(DERIVED)
        if derived is not None and (verify or derived.size != manifest.files[DERIVED].size):
            del bundle.checked[DERIVED]  # the first graph that reads it compares it
        if calibrated:
            _check_threshold(bundle, verify=verify)
        check_cfg(path, manifest, calibrated=bundle.calibrated)
    except (OSError, ValueError) as error:
        staged = (path / file_set.STAGED).exists()
        exchanged = not path.exists() and is_there(path)
        if staged or exchanged or identity(path / MANIFEST) != begun:
            raise BundleChanged(path) from error
        if isinstance(error, OSError):
            raise
        raise BundleError(str(error)) from error
    # Where hashes were compared, a writer that waits for a reader with more rights does not matter.
    staged = not verify and (path / file_set.STAGED).exists()
    if staged or begun != seen[MANIFEST] or any(identity(path / name) != known for name, known in seen.items()):
        raise BundleChanged(path)
    return bundle


def write(
    path: Path,
    weights: Mapping[str, NDArray[np.float32] | Streamed],
    manifest: Manifest,
    *,
    sample: NDArray[np.float32] | None = None,
    stats: Stats | None = None,
    labels_of: Path | None = None,
    licence: bytes | None = None,
    force: bool = False,
) -> None:
    """Write a bundle without graphs. The folder appears whole or not at all.

    Args:
        path: the folder to make.
        weights: float32 tensors as in `weight_shapes`, in any memory layout. `calibrate` can add the threshold later.
        manifest: describes the SAE; its `files` and `graphs` are replaced by those that are written.
        sample: a few thousand typical activations [m, d_in], from which export takes the steps of int8.
        stats: how often and how strongly each feature is active.
        labels_of: a bundle of the same features, whose labels the new one gets. It may be at `path` itself, and then a
            model card that a person edited stays too.
        licence: the text of the licence of a converted SAE's source; None: that of `labels_of`, if it has one.
        force: replace an existing bundle; see `foreign`.

    Raises:
        BundleError: the weights do not fit the manifest or are not finite.
        FileExistsError: the folder exists and `force` is not set, or it holds what is not of a bundle.
        ValueError: the folder is one of the installed package.
    """
    refuse_ready(path)
    with files.new_folder(path, force=force, foreign=foreign_but_labels(path, labels_of)) as folder:
        save_tensors(folder / WEIGHTS, weights)
        names = [WEIGHTS]
        cfg = sae_lens_cfg(manifest, calibrated="threshold" in weights)
        if cfg is not None:
            (folder / CFG).write_text(json.dumps(cfg, indent=2) + "\n")
            names.append(CFG)
        if sample is not None:
            save_tensors(folder / SAMPLE, {"x": np.ascontiguousarray(sample, np.float32)})
            names.append(SAMPLE)
        if stats is not None:
            save_stats(folder / STATS, stats)
            names.append(STATS)
        records = {name: record(folder / name) for name in names}
        manifest = dataclasses.replace(manifest, files=records, graphs={})
        (folder / MANIFEST).write_text(to_json(manifest))
        if _is_same(path, labels_of) and not may_write(path):  # a person's, be it a link, or no UTF-8
            shutil.copy2(path / CARD, folder / CARD, follow_symlinks=False)
        else:
            (folder / CARD).write_text(card(manifest), "utf-8")
        if labels_of is not None:
            labels.copy_labels(labels_of, folder)
            licence = licence or _kept_licence(labels_of)
        if licence is not None:
            (folder / LICENCE).write_bytes(licence)
        read(folder, calibrated=False)


def put_stats(bundle: Bundle, stats: Stats) -> None:
    """Put stats into a bundle, or replace those that it has. If the process dies, the old ones or the new ones stay.

    Raises:
        BundleError: the bundle's files are links.
        ValueError: it is one of the installed package.

    >>> from sae_runtime.bundle.stats import counted
    >>> bundle = read(bundle_path)
    >>> put_stats(bundle, counted(np.ones(150, np.int64), np.ones(150), 10))
    >>> read(bundle_path).stats().tokens
    10
    """
    refuse_kept(bundle.path)
    with replaced_bundle(bundle, MANIFEST) as staged:
        save_stats(staged / STATS, stats, bundle.logits())
        listed = {**bundle.manifest.files, STATS: record(staged / STATS)}
        (staged / MANIFEST).write_text(to_json(dataclasses.replace(bundle.manifest, files=listed)))


@contextlib.contextmanager
def replaced_bundle(bundle: Bundle, *unchanged: str) -> Iterator[Path]:
    """Give a hidden folder to fill with new files of a bundle, its manifest among them, which replace the old together.

    The model card is written with them, unless a person edited it.

    Args:
        bundle: the bundle that the new files were made from.
        unchanged: files that must still be as they were read when the new ones take their places.

    Raises:
        BundleChanged: one of these is not.

    >>> bundle = read(bundle_path)
    >>> with replaced_bundle(bundle, MANIFEST) as staged:
    ...     _ = (staged / MANIFEST).write_text(to_json(bundle.manifest))
    """
    staged: list[Path] = []

    def check() -> None:
        bundle.refuse_change(*unchanged)
        if may_write(bundle.path):
            (staged[0] / CARD).write_text(card(read_manifest(staged[0])), "utf-8")

    with file_set.replaced_together(bundle.path, last=MANIFEST, check=check) as folder:
        staged.append(folder)
        yield folder


def foreign(folder: Path, *, kept: Collection[str] = ()) -> str | None:
    """What of a folder replacing it by a bundle would lose: an entry that is no file of a bundle, or links, or None.

    A model card that a person edited and labels are foreign too, unless they are among the names that are `kept`, and
    so are weights that a spliced graph reads there.

    >>> foreign(Path(bundle_path))
    >>> _ = Path(bundle_path, "README.md").write_text("What we found")
    >>> foreign(Path(bundle_path))
    'README.md'
    """
    file_set.finish(folder, last=MANIFEST)
    if (graph := reader_of(folder)) is not None:
        return f"weights that {graph.name} reads"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    whole = any(entry.name == MANIFEST for entry in entries)
    for entry in entries:
        if whole and entry.is_symlink() and entry.name in NAMES:
            return "links, as a Hub cache does"
        ours = entry.name in NAMES or entry.name in kept or entry.name == CARD and may_write(folder)
        ours = ours or entry.name == LICENCE and _kept_licence(folder) is not None
        if not (whole and entry.is_file() and ours):
            return entry.name
    return None


def foreign_but_labels(path: Path, labels_of: Path | None) -> files.Foreign:
    """`foreign`, but for labels and card at `path` where `labels_of` is this bundle: then the new bundle gets them.

    >>> foreign_but_labels(Path(bundle_path), Path(bundle_path))(Path(bundle_path))
    """
    return functools.partial(foreign, kept=(labels.FILE, CARD) if _is_same(path, labels_of) else ())


def foreign_to_bundles(folder: Path) -> str | None:
    """What of a folder replacing it by a folder of bundles would lose: an entry that is no bundle alone, or None.

    >>> Path("saes").mkdir()
    >>> foreign_to_bundles(Path("saes"))
    """
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or not (entry / MANIFEST).is_file():
            return entry.name
        if (name := foreign(entry)) is not None:
            return f"{entry.name}/{name}"
    return None


def refuse_links(path: Path) -> None:
    """Raise BundleError if files of the bundle are links, which writing would replace.

    >>> refuse_links(Path(bundle_path))
    """
    if any((path / name).is_symlink() for name in NAMES):
        raise BundleError(f"{path} holds links, as a Hub cache does; copy the bundle's files into a folder")


def refuse_kept(path: Path) -> None:
    """Raise ValueError if the bundle has to stay as it is: a ready SAE of the package, or links, as a Hub cache has.

    >>> refuse_kept(Path(bundle_path))
    """
    refuse_ready(path)
    refuse_links(path)


def refuse_deployed(path: Path) -> None:
    """Raise BundleError if a spliced graph beside the folder reads its files, which writing would change.

    >>> refuse_deployed(Path(bundle_path))
    """
    if (graph := reader_of(path)) is not None:
        raise BundleError(f"{path} holds weights that {graph.name} reads; copy the bundle, and splice the copy again")


def _kept_licence(folder: Path) -> bytes | None:
    """The text of the licence that a bundle has from its source, if nobody changed it."""
    with contextlib.suppress(OSError, ValueError):
        text = read_bytes(folder / LICENCE)
        if hashlib.sha256(text).hexdigest() == read_manifest(folder).told("source", dict).get("licence_sha256"):
            return text
    return None


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and path.samefile(other)


def _check_threshold(bundle: Bundle, *, verify: bool) -> None:
    advice = f"run: sae-runtime calibrate {bundle.path}"
    if not bundle.calibrated:
        raise ValueError(f"{bundle.path / WEIGHTS} has no threshold yet, so it cannot be served; {advice}")
    if verify and "threshold" in bundle.specs and (bundle.tensor("threshold") < 0).any():
        raise ValueError(f"{bundle.path / WEIGHTS}: threshold is negative, which means unset; {advice}")
