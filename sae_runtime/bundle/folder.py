"""A bundle on disk: one folder with the weights of an SAE, its manifest and its graphs.

Training, export and the runtime share nothing but bundles. If SAELens computes the same features, the folder is a
SAELens folder too.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import file_set, files, manifest
from sae_runtime.bundle.contract import check_graph, check_order
from sae_runtime.bundle.graphs import EXACT, GRAPHS, export_options
from sae_runtime.bundle.hub import leaves
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.manifest import Architecture, FileRecord, GraphRecord, Manifest, from_json, to_json
from sae_runtime.bundle.recorded_sizes import check_sizes
from sae_runtime.bundle.regular import open_regular, read_bytes
from sae_runtime.bundle.sae_lens_cfg import CFG, check_cfg, sae_lens_cfg
from sae_runtime.bundle.siblings import is_there, repaired
from sae_runtime.bundle.stats import FILE as STATS
from sae_runtime.bundle.stats import Stats, read_stats, save_stats
from sae_runtime.bundle.tensors import Streamed, TensorSpec, map_tensor, read_header, save_tensors

MANIFEST = manifest.FILE
WEIGHTS = "sae_weights.safetensors"
DERIVED = "derived.safetensors"
SAMPLE = "sample.safetensors"
_TRIES = 20  # of a reader, while writers replace the bundle
_PAUSE = 0.02  # seconds at most before the next try

T = TypeVar("T")
_NAMES = {MANIFEST, WEIGHTS, DERIVED, SAMPLE, CFG, STATS, *(graph.file for graph in GRAPHS)}


class BundleError(ValueError):
    """A folder is not a sound bundle: a file is missing, altered or does not fit the others."""


class BundleChanged(BundleError):
    """A bundle is not the one that was read: its files were replaced or rewritten. Reading it again may help."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} changed since it was loaded; load it again")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return BundleChanged, (self.path,)


@dataclass(frozen=True)
class Bundle:
    """A bundle that `read` has checked: its folder, its manifest, and the position of each weight in its file.

    Whatever it gives later comes from the files that were checked, or from equal ones; else it raises `BundleChanged`.

    Attributes:
        path: the folder.
        manifest: its manifest.
        specs: of the weights, by name.
        checked: the files that this process has checked, by name.
    """

    path: Path
    manifest: Manifest
    specs: Mapping[str, TensorSpec]
    checked: dict[str, Identity] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checked": {}}  # another machine has other files

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight, mapped from the file; `weight_shapes` gives the names and shapes."""
        with self.unchanged(WEIGHTS):
            return map_tensor(self.path / WEIGHTS, self.specs[name])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights, mapped from the file, and b_pre [d_in], which is b_dec or zeros."""
        with self.unchanged(WEIGHTS):
            weights = {name: map_tensor(self.path / WEIGHTS, spec) for name, spec in self.specs.items()}
        architecture = self.manifest.architecture
        b_pre = weights["b_dec"] if architecture.pre_bias else np.zeros(architecture.d_in, np.float32)
        return weights | {"b_pre": b_pre}

    @property
    def calibrated(self) -> bool:
        """Whether the SAE has all that it selects by; an SAE that lacks its threshold cannot be served."""
        return self.manifest.architecture.selection != "threshold" or "threshold" in self.specs

    def sample(self) -> NDArray[np.float32] | None:
        """The sample: activations [m, d_in] like those that the SAE was fitted on. None if the bundle has no sample."""
        if SAMPLE not in self.manifest.files:
            return None
        with self.unchanged(SAMPLE):
            return np.array(map_tensor(self.path / SAMPLE, read_header(self.path / SAMPLE)["x"]))

    def stats(self) -> Stats | None:
        """How often and how strongly each feature was active on measured tokens. None if the bundle has no stats."""
        if STATS not in self.manifest.files:
            return None
        try:
            with self.unchanged(STATS):
                return read_stats(self.path / STATS, self.manifest.architecture.d_sae)
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(str(error)) from error

    def graph(self, name: str) -> bytes:
        """The bytes of a graph, checked; whoever runs them compares the files of `read_by` at that time.

        Args:
            name: file name of the graph.

        Raises:
            BundleError: the bundle has no such graph, or a file is missing or altered.
            BundleChanged: the bundle changed since it was read.

        >>> len(read(bundle_path).graph("encode.onnx")) > 1000
        True
        """
        record = self.manifest.graphs.get(name)
        if record is None:
            if self._has_changed():
                raise BundleChanged(self.path)
            command = f"sae-runtime export {self.path}{export_options(name)}"
            raise BundleError(f"{self.path} has no {name}: not exported yet; run: {command}")
        now = identity(self.path / name)
        try:
            _check_file(self.path, name, record, verify=False)
            graph = (self.path / name).read_bytes()
            if hashlib.sha256(graph).hexdigest() != record.sha256:
                raise ValueError(_altered(self.path / name))
            self.refuse_change(*self.read_by(name))
            derived = read_header(self.path / DERIVED) if record.derived else {}
            check_graph(graph, name, self.manifest, {WEIGHTS: self.specs, DERIVED: derived})
            if name == EXACT.file:
                order = map_tensor(self.path / DERIVED, derived["int8_order"])
                check_order(order, self.manifest.architecture.d_sae)
        except BundleChanged:
            raise
        except (OSError, ValueError) as error:
            if self._has_changed():
                raise BundleChanged(self.path) from error
            raise BundleError(f"{error}, or run: sae-runtime export {self.path}") from error
        if now is None or identity(self.path / name) != now:
            raise BundleChanged(self.path)
        self.checked[name] = now
        return graph

    def read_by(self, name: str) -> tuple[str, ...]:
        """The files that a graph of the bundle reads, by its name.

        >>> read(bundle_path).read_by("encode.onnx")
        ('sae_weights.safetensors',)
        """
        return (WEIGHTS, DERIVED) if self.manifest.graphs[name].derived else (WEIGHTS,)

    @contextlib.contextmanager
    def unchanged(self, *names: str) -> Iterator[None]:
        """Let a block open these files by their paths; raise if they are not those that were checked.

        Raises:
            BundleChanged: a file is another one, before or after the block.
            BundleError: a file that was not checked yet is missing or altered.

        >>> bundle = read(bundle_path)
        >>> with bundle.unchanged("sae_weights.safetensors"):
        ...     _ = (bundle.path / "sae_weights.safetensors").read_bytes()
        """
        self.refuse_change(*names)
        before = {name: self.checked[name] for name in names}
        try:
            yield
        finally:  # an error of the block may come from the change
            if any(identity(self.path / name) != known for name, known in before.items()):
                raise BundleChanged(self.path)

    def refuse_change(self, *names: str) -> None:
        """Raise `BundleChanged` if one of these files, graphs, or the manifest, is not as it was read.

        A file of another identity is compared by its sha256: it may be an equal copy.

        >>> read(bundle_path).refuse_change("sae_runtime.json", "sae_weights.safetensors")
        """
        for name in names:
            now = identity(self.path / name)
            if now is None or now != self.checked.get(name):
                self._compare(name)
                if now is None or identity(self.path / name) != now:
                    raise BundleChanged(self.path)
                self.checked[name] = now

    def arrived(self, here: "Bundle") -> None:
        """Take over what another reading of the bundle has checked, where its records are equal.

        >>> read(bundle_path).arrived(read(bundle_path))
        """
        for name, known in here.checked.items():
            same = here.manifest if name == MANIFEST else here.manifest.files.get(name)
            if same == (self.manifest if name == MANIFEST else self.manifest.files.get(name)):
                self.checked[name] = known

    def _compare(self, name: str) -> None:
        """Compare the bytes of a file with its record, and the manifest with the one that was read."""
        try:
            if name != MANIFEST:
                record = self.manifest.files.get(name) or self.manifest.graphs[name]
                _check_file(self.path, name, record, verify=True)
            elif _read_manifest(self.path) != self.manifest:
                raise BundleChanged(self.path)
        except (OSError, ValueError) as error:
            if name in self.checked or self._has_changed():
                raise BundleChanged(self.path) from error
            raise BundleError(str(error)) from error

    def _has_changed(self) -> bool:
        """Whether a writer replaces the bundle or has replaced its manifest."""
        staged = (self.path / file_set.STAGED).exists()  # looked for first: it goes away after the manifest has come
        return staged or identity(self.path / MANIFEST) != self.checked.get(MANIFEST)


def write(
    path: Path,
    weights: Mapping[str, NDArray[np.float32] | Streamed],
    manifest: Manifest,
    *,
    sample: NDArray[np.float32] | None = None,
    stats: Stats | None = None,
    force: bool = False,
) -> None:
    """Write a bundle without graphs. The folder appears whole or not at all.

    Args:
        path: the folder to make.
        weights: float32 tensors as in `weight_shapes`, in any memory layout. `calibrate` can add the threshold later.
        manifest: describes the SAE; its `files` and `graphs` are replaced by those that are written.
        sample: a few thousand typical activations [m, d_in], from which export takes the steps of int8.
        stats: how often and how strongly each feature is active.
        force: replace an existing bundle; see `foreign`.

    Raises:
        BundleError: the weights do not fit the manifest or are not finite.
        FileExistsError: the folder exists and `force` is not set, or it holds what is not of a bundle.
    """
    with files.new_folder(path, force=force, foreign=foreign) as folder:
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
        (folder / MANIFEST).write_text(to_json(dataclasses.replace(manifest, files=records, graphs={})))
        read(folder, calibrated=False)


def foreign(folder: Path) -> str | None:
    """What of a folder replacing it by a bundle would lose: an entry that is no file of a bundle, or links, or None.

    A model card or labels that a person wrote are foreign too.

    >>> foreign(Path(bundle_path))
    >>> _ = Path(bundle_path, "README.md").write_text("What we found")
    >>> foreign(Path(bundle_path))
    'README.md'
    >>> Path(bundle_path, "README.md").unlink()
    """
    file_set.finish(folder, last=MANIFEST)
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    whole = any(entry.name == MANIFEST for entry in entries)
    for entry in entries:
        if whole and entry.is_symlink() and entry.name in _NAMES:
            return "links, as a Hub cache does"
        if not (whole and entry.is_file() and entry.name in _NAMES):
            return entry.name
    return None


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


def put_stats(bundle: Bundle, stats: Stats) -> None:
    """Put stats into a bundle, or replace those that it has. If the process dies, the old ones or the new ones stay.

    Raises:
        BundleError: the bundle's files are links.

    >>> from sae_runtime.bundle.stats import counted
    >>> bundle = read(bundle_path)
    >>> put_stats(bundle, counted(np.ones(150, np.int64), np.ones(150), 10))
    >>> read(bundle_path).stats().tokens
    10
    """
    refuse_links(bundle.path)
    with file_set.replaced_together(bundle.path, last=MANIFEST, check=lambda: bundle.refuse_change(MANIFEST)) as staged:
        save_stats(staged / STATS, stats)
        listed = {**bundle.manifest.files, STATS: record(staged / STATS)}
        (staged / MANIFEST).write_text(to_json(dataclasses.replace(bundle.manifest, files=listed)))


def refuse_links(path: Path) -> None:
    """Raise BundleError if the bundle's files are links, which writing would replace.

    >>> refuse_links(Path(bundle_path))
    """
    if (path / MANIFEST).is_symlink():
        raise BundleError(f"{path} holds links, as a Hub cache does; copy the bundle's files into a folder")


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
        manifest = _read_manifest(path)
        seen = {name: identity(path / name) for name in (MANIFEST, *manifest.files)}
        bundle = Bundle(path, manifest, _checked_specs(path, manifest, verify=verify))
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


def record(path: Path) -> FileRecord:
    """Size and sha256 of a file.

    >>> Path("a.txt").write_text("abc")
    3
    >>> record(Path("a.txt")).size
    3
    """
    with open_regular(path) as file:
        return FileRecord(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of `sae_weights.safetensors`, which holds exactly these.

    >>> weight_shapes(Architecture(d_in=24, d_sae=150, selection="topk", k=6))["W_enc"]
    (24, 150)
    """
    d_in, d_sae, d_out = architecture.d_in, architecture.d_sae, architecture.d_x_hat
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out)}
    shapes |= {"b_enc": (d_sae,), "b_dec": (d_out,)}
    if architecture.selection == "threshold":
        shapes["threshold"] = (d_sae,)
    if architecture.skip:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _checked_specs(path: Path, manifest: Manifest, *, verify: bool) -> dict[str, TensorSpec]:
    """The specs of the weights, after checks of every file but the graphs and the derived weights."""
    for name, file_record in manifest.files.items():
        if name != DERIVED:  # users may delete it; `Bundle.graph` checks it for the graphs that read it
            _check_file(path, name, file_record, verify=verify or name == CFG)
    if WEIGHTS not in manifest.files:
        raise ValueError(f"{path / MANIFEST} does not list {WEIGHTS}; make the bundle again")
    specs, shapes = read_header(path / WEIGHTS), weight_shapes(manifest.architecture)
    if "threshold" not in specs:
        shapes.pop("threshold", None)
    _check_tensors(path / WEIGHTS, specs, shapes, verify=verify)
    if SAMPLE in manifest.files:
        sample = read_header(path / SAMPLE)
        rows = sample["x"].shape[:1] if "x" in sample else ()
        _check_tensors(path / SAMPLE, sample, {"x": (*rows, manifest.architecture.d_in)}, verify=verify)
    if STATS in manifest.files and verify:
        read_stats(path / STATS, manifest.architecture.d_sae)
    return specs


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; a bundle is the folder that `sae-runtime train` writes")
    try:
        if leaves(path / MANIFEST, path):
            raise ValueError(
                f"it is a link out of the bundle, to {(path / MANIFEST).resolve()}; put the file itself there"
            )
        read = from_json(read_bytes(path / MANIFEST))
        check_sizes(read, weight_shapes(read.architecture))
        return read
    except FileNotFoundError as error:
        raise ValueError(f"{path} holds no {MANIFEST}, so it is not a bundle; make one: sae-runtime train") from error
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST}: {error}") from error


def _check_file(folder: Path, name: str, expected: FileRecord | GraphRecord, *, verify: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the bundle again")
    if leaves(path, folder):
        raise ValueError(f"{path} is a link out of the bundle, to {path.resolve()}; put the file itself there")
    size = path.stat().st_size
    if size != expected.size:
        raise ValueError(f"{path} has {size} bytes, expected {expected.size}: truncated or altered; copy it again")
    if verify and record(path).sha256 != expected.sha256:
        raise ValueError(_altered(path))


def _altered(path: Path) -> str:
    return f"{path} was altered: its sha256 differs from the manifest's; copy it again"


def _check_tensors(
    file: Path, specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]], *, verify: bool
) -> None:
    if set(specs) != set(shapes):
        raise ValueError(f"{file} holds {sorted(specs)}, expected exactly {sorted(shapes)}; make the bundle again")
    for name, spec in specs.items():
        if spec.dtype != "F32" or spec.shape != shapes[name]:
            raise ValueError(
                f"{file}: {name} is {spec.dtype} {list(spec.shape)}, expected F32 {list(shapes[name])}; "
                "make the bundle again"
            )
        if verify and not np.isfinite(map_tensor(file, spec)).all():
            raise ValueError(f"{file}: {name} holds NaN or Inf; make the bundle again")


def _check_threshold(bundle: Bundle, *, verify: bool) -> None:
    advice = f"run: sae-runtime calibrate {bundle.path}"
    if not bundle.calibrated:
        raise ValueError(f"{bundle.path / WEIGHTS} has no threshold yet, so it cannot be served; {advice}")
    if verify and "threshold" in bundle.specs and (bundle.tensor("threshold") < 0).any():
        raise ValueError(f"{bundle.path / WEIGHTS}: threshold is negative, which means unset; {advice}")
