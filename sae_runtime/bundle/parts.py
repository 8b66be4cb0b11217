"""The files of a bundle: their names, and the checks of each by the manifest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sae_runtime.bundle import manifest, stats
from sae_runtime.bundle.graphs import GRAPHS
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.manifest import Architecture, FileRecord, GraphRecord, Manifest, from_json
from sae_runtime.bundle.recorded_sizes import check_sizes
from sae_runtime.bundle.regular import open_regular, read_bytes
from sae_runtime.bundle.sae_lens_cfg import CFG
from sae_runtime.bundle.tensors import TensorSpec, all_finite, map_tensor, read_header
from sae_runtime.bundle.token_logits import read_logits

MANIFEST = manifest.FILE
WEIGHTS = "sae_weights.safetensors"
DERIVED = "derived.safetensors"
SAMPLE = "sample.safetensors"
STATS = stats.FILE
NAMES = {MANIFEST, WEIGHTS, DERIVED, SAMPLE, CFG, STATS, *(graph.file for graph in GRAPHS)}


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


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder, its sizes checked against one another.

    Raises:
        OSError: it may not be read.
        ValueError: there is none, or it is not sound.

    >>> read_manifest(Path(bundle_path)).slots
    24
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; a bundle is the folder that `sae-runtime train` writes")
    refuse_link_out(path / MANIFEST, path)
    try:
        read = from_json(read_bytes(path / MANIFEST))
        check_sizes(read, weight_shapes(read.architecture))
        return read
    except FileNotFoundError as error:
        inner = sorted(str(file.parent) for file in path.glob(f"[!.]*/{MANIFEST}"))
        then = f"name one that it holds: {', '.join(inner[:5])}" if inner else "make one: sae-runtime train"
        raise ValueError(f"{path} holds no {MANIFEST}, so it is not a bundle; {then}") from error
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST}: {error}") from error


def check_file(folder: Path, name: str, expected: FileRecord | GraphRecord, *, verify: bool) -> None:
    """Raise ValueError if a file is missing, is a link out of the folder, or is not as its record says.

    Args:
        folder: the bundle.
        name: of the file.
        expected: its record.
        verify: compare the hash; if False, the size alone.

    >>> check_file(Path(bundle_path), MANIFEST, record(Path(bundle_path) / MANIFEST), verify=True)
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy its folder again")
    refuse_link_out(path, folder)
    size = path.stat().st_size
    if size != expected.size:
        raise ValueError(f"{path} has {size} bytes, expected {expected.size}: truncated or altered; copy it again")
    if verify and record(path).sha256 != expected.sha256:
        raise altered(path)


def altered(path: Path) -> ValueError:
    """The error of a file whose sha256 is not that of its record.

    >>> altered(Path("my-sae/encode.onnx"))
    ValueError("my-sae/encode.onnx was altered: its sha256 differs from the manifest's; copy it again")
    """
    return ValueError(f"{path} was altered: its sha256 differs from the manifest's; copy it again")


def checked_specs(path: Path, manifest: Manifest, *, verify: bool) -> dict[str, TensorSpec]:
    """The specs of the weights, after checks of every file but the graphs and the derived weights."""
    for name, file_record in manifest.files.items():
        if name != DERIVED:  # users may delete it; `Bundle.graph` checks it for the graphs that read it
            check_file(path, name, file_record, verify=verify or name == CFG)
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
        stats.read_stats(path / STATS, manifest.architecture.d_sae)
        read_logits(path / STATS, manifest.architecture.d_sae)
    return specs


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
        if verify and not all_finite(map_tensor(file, spec)):
            raise ValueError(f"{file}: {name} holds NaN or Inf; make the bundle again")
