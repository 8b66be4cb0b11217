"""A bundle on disk: one folder with the weights of an SAE, its manifest and its graphs.

Training, export and the runtime know each other through bundles only. Where SAELens computes the same features, the
folder is a SAELens folder too.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import file_set, files
from sae_runtime.bundle.graphs import export_options
from sae_runtime.bundle.hub import leaves
from sae_runtime.bundle.manifest import Architecture, FileRecord, GraphRecord, Manifest, from_json, to_json
from sae_runtime.bundle.sae_lens_cfg import CFG, sae_lens_cfg
from sae_runtime.bundle.tensors import Streamed, TensorSpec, map_tensor, read_header, save_tensors, stream_tensors
from sae_runtime.bundle.typed_json import read_json

MANIFEST = "sae_runtime.json"
WEIGHTS = "sae_weights.safetensors"
DERIVED = "derived.safetensors"
SAMPLE = "sample.safetensors"


class BundleError(ValueError):
    """A folder is not a sound bundle: a file is missing, altered or does not fit the others."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked: its folder, its manifest and where its weights are in their file."""

    path: Path
    manifest: Manifest
    specs: Mapping[str, TensorSpec]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight of `weight_shapes`, mapped from the file."""
        return map_tensor(self.path / WEIGHTS, self.specs[name])

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights, mapped from the file, and b_pre [d_in], which is b_dec or zeros."""
        weights = {name: self.tensor(name) for name in self.specs}
        architecture = self.manifest.architecture
        return {
            **weights,
            "b_pre": weights["b_dec"] if architecture.pre_bias else np.zeros(architecture.d_in, np.float32),
        }

    @property
    def calibrated(self) -> bool:
        """Whether the SAE has the threshold that it selects by, if any; without it, it cannot be served."""
        return self.manifest.architecture.selection != "threshold" or "threshold" in self.specs

    def sample(self) -> NDArray[np.float32] | None:
        """Activations [m, d_in] like those that the SAE was fitted on, or None if the bundle has none."""
        if SAMPLE not in self.manifest.files:
            return None
        return np.array(map_tensor(self.path / SAMPLE, read_header(self.path / SAMPLE)["x"]))

    def graph(self, name: str, *, verify: bool = True) -> Path:
        """Path of a graph, after a check that it and the derived weights that it reads are as export wrote them.

        Args:
            name: of the graph.
            verify: compare the hash of the derived weights; without it, only their size is compared.

        Raises:
            BundleError: the bundle has no such graph, or a file is missing or was altered.
        """
        record = self.manifest.graphs.get(name)
        if record is None:
            raise BundleError(
                f"{self.path} has no {name}: not exported yet; "
                f"run: sae-runtime export {self.path}{export_options(name)}"
            )
        try:
            _check_file(self.path, name, record, verify=True)
            if record.derived:
                _check_file(self.path, DERIVED, self.manifest.files[DERIVED], verify=verify)
        except BundleError as error:
            raise BundleError(f"{error}; run: sae-runtime export {self.path}") from error
        return self.path / name


def write(
    path: Path,
    weights: Mapping[str, NDArray[np.float32] | Streamed],
    manifest: Manifest,
    *,
    sample: NDArray[np.float32] | None = None,
    force: bool = False,
) -> None:
    """Write a bundle without graphs; it appears whole or not at all.

    Args:
        path: the folder to make.
        weights: those of `weight_shapes`, float32, in any memory layout; `calibrate` can add the threshold later.
        manifest: what the SAE is; its `files` and `graphs` are filled in here.
        sample: a few thousand typical activations [m, d_in], on which export sets the steps of int8.
        force: replace what exists there.

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
        records = {name: record(folder / name) for name in names}
        manifest = dataclasses.replace(manifest, files=records, graphs={})
        (folder / MANIFEST).write_text(to_json(manifest))
        read(folder, calibrated=False)


def read(path: str | Path, *, verify: bool = True, calibrated: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the folder.
        verify: also compare hashes and look for numbers that are not finite; without it, sizes and shapes only.
        calibrated: refuse a bundle that still lacks its threshold.

    Raises:
        BundleError: something is missing, altered, of another version or does not fit; the message says what.

    >>> bundle = read(bundle_path)
    >>> bundle.tensor("W_enc").shape
    (24, 150)
    """
    path = Path(path)
    files.repair(path)
    file_set.finish(path, last=MANIFEST)
    manifest = _read_manifest(path)
    for name, file_record in manifest.files.items():
        if name != DERIVED:  # it may be deleted, and `Bundle.graph` checks it where a graph needs it
            _check_file(path, name, file_record, verify=verify or name == CFG)
    if WEIGHTS not in manifest.files:
        raise BundleError(f"{path / MANIFEST} does not list {WEIGHTS}; make the bundle again")
    try:
        bundle = Bundle(path, manifest, read_header(path / WEIGHTS))
    except ValueError as error:
        raise BundleError(str(error)) from error
    _check_weights(bundle, verify=verify, calibrated=calibrated)
    _check_sample(bundle, verify=verify)
    if calibrated and not bundle.calibrated:
        raise BundleError(
            f"{path / WEIGHTS} has no threshold yet, so it cannot be served; run: sae-runtime calibrate {path}"
        )
    _check_cfg(bundle)
    return bundle


def record(path: Path) -> FileRecord:
    """Size and hash of a file as it is now.

    >>> Path("a.txt").write_text("abc")
    3
    >>> record(Path("a.txt")).size
    3
    """
    with path.open("rb") as file:
        return FileRecord(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise BundleError(f"{path} {problem}; a bundle is the folder that `sae-runtime train` writes")
    try:
        return from_json((path / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise BundleError(f"{path} holds no {MANIFEST}, so it is not a bundle; make one: sae-runtime train") from error
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST}: {error}") from error


def _check_file(folder: Path, name: str, expected: FileRecord | GraphRecord, *, verify: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again")
    if leaves(path, folder):
        raise BundleError(f"{path} is a link out of the bundle, to {path.resolve()}; put the file itself there")
    size = path.stat().st_size
    if size != expected.size:
        raise BundleError(f"{path} has {size} bytes, expected {expected.size}: truncated or altered; copy it again")
    if verify and record(path).sha256 != expected.sha256:
        raise BundleError(f"{path} was altered: its sha256 differs from the manifest's; copy it again")


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of `sae_weights.safetensors`, which holds exactly these.

    >>> weight_shapes(Architecture(d_in=24, d_sae=150, selection="topk", k=6))["W_enc"]
    (24, 150)
    """
    d_in, d_sae, d_out = architecture.d_in, architecture.d_sae, architecture.d_x_hat
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_enc": (d_sae,),
        "b_dec": (d_out,),
    }
    if architecture.selection == "threshold":
        shapes["threshold"] = (d_sae,)
    if architecture.skip:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _check_weights(bundle: Bundle, *, verify: bool, calibrated: bool) -> None:
    file, shapes = bundle.path / WEIGHTS, weight_shapes(bundle.manifest.architecture)
    if not bundle.calibrated:
        del shapes["threshold"]
    if set(bundle.specs) != set(shapes):
        raise BundleError(f"{file} holds {sorted(bundle.specs)}, expected exactly {sorted(shapes)}")
    for name, shape in shapes.items():
        spec = bundle.specs[name]
        if spec.dtype != "F32" or spec.shape != shape:
            raise BundleError(f"{file}: {name} is {spec.dtype} {list(spec.shape)}, expected F32 {list(shape)}")
    if not verify:
        return
    for name in shapes:
        tensor = bundle.tensor(name)
        if not np.isfinite(tensor).all():
            raise BundleError(f"{file}: {name} holds NaN or Inf; train it again")
        if name == "threshold" and (tensor < 0).any() and calibrated:
            raise BundleError(
                f"{file}: threshold is negative, which means unset; run: sae-runtime calibrate {bundle.path}"
            )


def _check_sample(bundle: Bundle, *, verify: bool) -> None:
    if SAMPLE not in bundle.manifest.files:
        return
    file, d_in = bundle.path / SAMPLE, bundle.manifest.architecture.d_in
    try:
        specs = read_header(file)
    except ValueError as error:
        raise BundleError(str(error)) from error
    shapes = {name: (spec.dtype, spec.shape[1:]) for name, spec in specs.items() if len(spec.shape) == 2}
    if shapes != {"x": ("F32", (d_in,))} or len(specs) != 1:
        raise BundleError(f"{file} must hold x, F32 [tokens, {d_in}], and nothing else; make the bundle again")
    if verify and not np.isfinite(map_tensor(file, specs["x"])).all():
        raise BundleError(f"{file} holds NaN or Inf; make the bundle again")


def _check_cfg(bundle: Bundle) -> None:
    path, manifest = bundle.path, bundle.manifest
    expected = sae_lens_cfg(manifest, calibrated=bundle.calibrated)
    if (expected is None) == (CFG in manifest.files):
        raise BundleError(
            f"{path / MANIFEST} {'lists' if expected is None else 'does not list'} {CFG}; make the bundle again"
        )
    if expected is None:
        return
    try:
        cfg = read_json(dict[str, Any], (path / CFG).read_bytes(), str(path / CFG))
    except ValueError as error:
        raise BundleError(f"{error}; copy it again") from error
    for key, value in expected.items():
        if key not in ("metadata", "device") and cfg.get(key) != value:
            raise BundleError(f"{path / CFG} and {MANIFEST} disagree on {key}; copy the bundle again")
