"""A bundle on disk: one folder with the weights of an SAE, its manifest and its graphs.

Training, export and the runtime share nothing but bundles. If SAELens computes the same features, the folder is a
SAELens folder too.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import file_set, files, manifest
from sae_runtime.bundle.contract import check_graph, check_order
from sae_runtime.bundle.graphs import EXACT, export_options
from sae_runtime.bundle.hub import leaves
from sae_runtime.bundle.manifest import Architecture, FileRecord, GraphRecord, Manifest, from_json, to_json
from sae_runtime.bundle.sae_lens_cfg import CFG, check_cfg, sae_lens_cfg
from sae_runtime.bundle.stats import FILE as STATS
from sae_runtime.bundle.stats import Stats, read_stats, save_stats
from sae_runtime.bundle.tensors import Streamed, TensorSpec, map_tensor, read_header, save_tensors, stream_tensors

MANIFEST = manifest.FILE
WEIGHTS = "sae_weights.safetensors"
DERIVED = "derived.safetensors"
SAMPLE = "sample.safetensors"


class BundleError(ValueError):
    """A folder is not a sound bundle: a file is missing, altered or does not fit the others."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that `read` has checked: its folder, its manifest, and the position of each weight in its file."""

    path: Path
    manifest: Manifest
    specs: Mapping[str, TensorSpec]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight, mapped from the file; `weight_shapes` gives the names and shapes."""
        return map_tensor(self.path / WEIGHTS, self.specs[name])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights, mapped from the file, and b_pre [d_in], which is b_dec or zeros."""
        weights = {name: self.tensor(name) for name in self.specs}
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
        return np.array(map_tensor(self.path / SAMPLE, read_header(self.path / SAMPLE)["x"]))

    def stats(self) -> Stats | None:
        """How often and how strongly each feature was active on measured tokens. None if the bundle has no stats."""
        if STATS not in self.manifest.files:
            return None
        self.refuse_change(WEIGHTS, STATS)
        try:
            return read_stats(self.path / STATS, self.manifest.architecture.d_sae)
        except ValueError as error:
            raise BundleError(str(error)) from error

    def graph(self, name: str, *, verify: bool = True) -> Path:
        """Check a graph and the derived weights that it reads, and give the graph's path.

        Args:
            name: file name of the graph.
            verify: compare the hash of the derived weights; if False, compare their size alone.

        Raises:
            BundleError: the bundle has no such graph, changed since it was read, or a file is missing or altered.

        >>> read(bundle_path).graph("encode.onnx").name
        'encode.onnx'
        """
        graph = self.manifest.graphs.get(name)
        self.refuse_change(name, WEIGHTS, *([DERIVED] if graph is not None and graph.derived else []))
        if graph is None:
            command = f"sae-runtime export {self.path}{export_options(name)}"
            raise BundleError(f"{self.path} has no {name}: not exported yet; run: {command}")
        try:
            _check_file(self.path, name, graph, verify=True)
            derived: Mapping[str, TensorSpec] = {}
            if graph.derived:
                _check_file(self.path, DERIVED, self.manifest.files[DERIVED], verify=verify)
                derived = read_header(self.path / DERIVED)
            check_graph((self.path / name).read_bytes(), name, self.manifest, {WEIGHTS: self.specs, DERIVED: derived})
            if name == EXACT.file:
                order = map_tensor(self.path / DERIVED, derived["int8_order"])
                check_order(order, self.manifest.architecture.d_sae)
        except ValueError as error:
            raise BundleError(f"{error}, or run: sae-runtime export {self.path}") from error
        return self.path / name

    def refuse_change(self, *names: str) -> None:
        """Raise BundleError if the manifest now records one of these files or graphs otherwise than it did."""
        try:
            now = _read_manifest(self.path)
        except ValueError as error:
            raise BundleError(str(error)) from error
        before = self.manifest
        if any(before.files.get(name) != now.files.get(name) for name in names) or any(
            before.graphs.get(name) != now.graphs.get(name) for name in names
        ):
            raise BundleError(f"{self.path} changed since it was loaded; load it again")


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
        force: replace an existing folder.

    Raises:
        BundleError: the weights do not fit the manifest or are not finite.
        FileExistsError: the folder exists and `force` is not set.
    """
    with files.new_folder(path, force=force) as folder:
        stream_tensors(folder / WEIGHTS, weights)
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
    with file_set.replaced_together(bundle.path, last=MANIFEST) as staged:
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
        BundleError: a file is missing, altered, of another version, or does not fit the others.

    >>> bundle = read(bundle_path)
    >>> bundle.tensor("W_enc").shape
    (24, 150)
    """
    path = Path(path)
    files.repair(path)
    file_set.finish(path, last=MANIFEST)
    try:
        bundle = Bundle(path, *_read_parts(path, verify=verify))
        if calibrated:
            _check_threshold(bundle, verify=verify)
        check_cfg(path, bundle.manifest, calibrated=bundle.calibrated)
    except ValueError as error:
        raise BundleError(str(error)) from error
    return bundle


def record(path: Path) -> FileRecord:
    """Size and sha256 of a file.

    >>> Path("a.txt").write_text("abc")
    3
    >>> record(Path("a.txt")).size
    3
    """
    with path.open("rb") as file:
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


def _read_parts(path: Path, *, verify: bool) -> tuple[Manifest, dict[str, TensorSpec]]:
    """The manifest and the specs of the weights, after checks of every file but the graphs and the derived weights."""
    manifest = _read_manifest(path)
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
    return manifest, specs


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; a bundle is the folder that `sae-runtime train` writes")
    try:
        return from_json((path / MANIFEST).read_text())
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
        raise ValueError(f"{path} was altered: its sha256 differs from the manifest's; copy it again")


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
