"""A bundle on disk: one folder with the weights of an SAE, its manifest and its graphs.

This is all that training, export and the runtime know of each other. The folder is a SAELens folder too.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime import files
from sae_runtime.quota import Quota
from sae_runtime.tensors import TensorSpec, map_tensor, read_header, save_tensors

SCHEMA_VERSION = 1
MANIFEST = "sae_runtime.json"
CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
DERIVED = "derived.safetensors"
_SAE_LENS_VERSION = "6.54.12"  # the release whose folder format and maths cfg.json follows


class BundleError(ValueError):
    """A folder that cannot be trusted to be the bundle it says it is."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What the encoder computes: z = relu((x - b_dec) W_enc + b_enc), of which the selection keeps some.

    selection "topk" keeps the k largest z of every token, "threshold" those with z > threshold (one per feature).
    """

    d_in: int
    d_sae: int
    selection: str
    k: int | None = None

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_sae < 1:
            raise ValueError(f"d_in and d_sae must be at least 1, got {self.d_in} and {self.d_sae}")
        if self.selection not in ("topk", "threshold"):
            raise ValueError(f"selection must be 'topk' or 'threshold', got {self.selection!r}")
        if (self.k is None) != (self.selection == "threshold"):
            raise ValueError("k belongs to selection 'topk', and only there")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must be in [1, d_sae={self.d_sae}], got {self.k}")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Which token-feature matches a batch pays for: "token", "mutual" or "feature" choice at k matches a token.

    quota belongs to feature choice; feature i has rank i + 1, since features are saved by falling quota.
    """

    kind: str
    k: float
    quota: Quota | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("token", "mutual", "feature"):
            raise ValueError(f"allocation must be token, mutual or feature, got {self.kind!r}")
        if not 0 < self.k < float("inf"):
            raise ValueError(f"k must be positive, got {self.k}")
        if (self.quota is not None) != (self.kind == "feature"):
            raise ValueError("a quota belongs to feature choice, and only there")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and sha256 of a file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """The same of a graph, and whether a row of its output depends on that row of its input alone."""

    size: int
    sha256: str
    row_independent: bool


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`sae_runtime.json`: what the SAE is, where it came from, what it measured, and what every file must be."""

    encoder: Encoder
    allocation: Allocation
    width: int  # slots a token has in encode.onnx; a token that fills them all is encoded again, wider
    model: str | None = None  # the host model's name
    hook: str | None = None  # the module whose output is the activation, as in torch's named_modules
    measured: Mapping[str, float] = field(default_factory=dict)  # on held-out activations; see docs/architecture.md
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    graphs: Mapping[str, GraphRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.width <= self.encoder.d_sae:
            raise ValueError(f"width must be in [1, d_sae={self.encoder.d_sae}], got {self.width}")
        if self.allocation.k > self.encoder.d_sae:
            raise ValueError(f"k must be at most d_sae={self.encoder.d_sae}, got {self.allocation.k:g}")
        if (self.allocation.kind == "token") != (self.encoder.selection == "topk"):
            raise ValueError("token choice is served by selection 'topk', the other allocations by 'threshold'")
        k = self.encoder.k
        if k is not None and not k == self.width == self.allocation.k:
            raise ValueError(f"token choice has one k, got {k}, width {self.width} and k {self.allocation.k:g}")
        for name in (*self.files, *self.graphs):
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is not the name of a file in the bundle's own folder")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked: its folder, its manifest and where its weights lie."""

    path: Path
    manifest: Manifest
    specs: Mapping[str, TensorSpec]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight (W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc, b_dec, threshold), mapped from the file."""
        return map_tensor(self.path / WEIGHTS, self.specs[name])

    def graph(self, name: str) -> Path:
        """Path of a graph whose bytes, and those of the derived weights that it reads, are what export wrote.

        Raises:
            BundleError: the bundle has no such graph, or a file is missing or was altered.
        """
        record = self.manifest.graphs.get(name)
        if record is None:
            raise BundleError(f"{self.path} has no {name}: not exported yet; run: sae-runtime export {self.path}")
        try:
            _check_file(self.path, name, record, verify=True)
            if name == "encode_joint.onnx" and DERIVED in self.manifest.files:
                _check_file(self.path, DERIVED, self.manifest.files[DERIVED], verify=True)
        except BundleError as error:
            raise BundleError(f"{error}; run: sae-runtime export {self.path}") from error
        return self.path / name


def write(path: Path, weights: Mapping[str, NDArray[np.float32]], manifest: Manifest, *, force: bool = False) -> None:
    """Write a bundle without graphs; it appears whole or not at all.

    Args:
        path: the folder to make.
        weights: W_enc, W_dec, b_enc, b_dec and, for selection "threshold", threshold; float32.
        manifest: its `files` and `graphs` are filled in here.
        force: replace a folder that stands there already.

    Raises:
        BundleError: the weights do not fit the manifest or are not finite.
        FileExistsError: the folder exists and `force` is not set.
    """
    with files.new_folder(path, force=force) as folder:
        save_tensors(folder / WEIGHTS, {k: np.ascontiguousarray(v) for k, v in weights.items()})
        (folder / CFG).write_text(json.dumps(_sae_lens_cfg(manifest), indent=2) + "\n")
        records = {name: record(folder / name) for name in (WEIGHTS, CFG)}
        manifest = dataclasses.replace(manifest, files=records, graphs={})
        (folder / MANIFEST).write_text(to_json(manifest))
        read(folder)


def read(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the folder.
        verify: also compare hashes and look for numbers that are not finite; without it, sizes and shapes only.

    Raises:
        BundleError: something is missing, altered, of another version or does not fit; the message says what.
    """
    path = Path(path)
    files.repair(path)
    manifest = _read_manifest(path)
    for name, file_record in manifest.files.items():
        if name != DERIVED:  # which may be deleted, and is checked by whoever needs it
            _check_file(path, name, file_record, verify=verify or name == CFG)
    for name in (WEIGHTS, CFG):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} does not list {name}; make the bundle again")
    try:
        bundle = Bundle(path, manifest, read_header(path / WEIGHTS))
    except ValueError as error:
        raise BundleError(str(error)) from error
    _check_weights(bundle, verify=verify)
    _check_cfg(path, manifest)
    return bundle


def record(path: Path) -> FileRecord:
    """Size and hash of a file as it is now."""
    with path.open("rb") as file:
        return FileRecord(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def to_json(manifest: Manifest) -> str:
    """The text of `sae_runtime.json`."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder; a bundle is the folder that `sae-runtime train` writes")
    try:
        data = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise BundleError(f"{path} holds no {MANIFEST}, so it is not a bundle; make one: sae-runtime train") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is not readable JSON ({error}); make the bundle again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path / MANIFEST} has schema version {version}, this sae-runtime reads {SCHEMA_VERSION}; "
            "install the release that wrote it"
        )
    try:
        return typing.cast(Manifest, _build(Manifest, data, "manifest"))
    except (ValueError, OverflowError) as error:
        raise BundleError(f"{path / MANIFEST}: {error}; make the bundle again") from error


def _build(kind: Any, data: Any, where: str) -> Any:
    """Turn JSON into a dataclass by its annotations, refusing what is missing, unknown or of another type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        required = {f.name for f in dataclasses.fields(kind) if _no_default(f)}
        if not isinstance(data, dict) or not required <= set(data) <= set(hints):
            raise ValueError(f"{where} must have the fields {', '.join(hints)}")
        return typing.cast(Any, kind)(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items()})
    if typing.get_origin(kind) is types.UnionType:
        options = typing.get_args(kind)
        return None if data is None else _build(options[0], data, where)
    if typing.get_origin(kind) is not None:  # Mapping[str, T]
        if not isinstance(data, dict):
            raise ValueError(f"{where} must be an object")
        return {k: _build(typing.get_args(kind)[1], v, f"{where}.{k}") for k, v in data.items()}
    if kind is Any:
        return data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        data = float(data)
    if type(data) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {data!r}")
    return data


def _no_default(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _check_file(folder: Path, name: str, expected: FileRecord | GraphRecord, *, verify: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the bundle again")
    target, home = path.resolve(), folder.resolve()
    # A Hub cache keeps the bytes in <repo>/blobs and links to them from <repo>/snapshots/<revision>.
    if target.parent != home and target.parent != home.parent.parent / "blobs":
        raise BundleError(f"{path} is a link out of the bundle, to {target}; put the file itself there")
    size = target.stat().st_size
    if size != expected.size:
        raise BundleError(f"{path} has {size} bytes, expected {expected.size}: truncated or altered; copy it again")
    if verify and record(target).sha256 != expected.sha256:
        raise BundleError(f"{path} was altered: its sha256 differs from the manifest's; copy it again")


def weight_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """The tensors that `sae_weights.safetensors` holds, no more and no less, with their shapes."""
    d_in, d_sae = encoder.d_in, encoder.d_sae
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    if encoder.selection == "threshold":
        shapes["threshold"] = (d_sae,)
    return shapes


def _check_weights(bundle: Bundle, *, verify: bool) -> None:
    file, shapes = bundle.path / WEIGHTS, weight_shapes(bundle.manifest.encoder)
    if "threshold" in shapes and "threshold" not in bundle.specs:
        raise BundleError(f"{file} has no threshold, without which it cannot be served; calibrate it by training again")
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
        if name == "threshold" and (tensor < 0).any():
            raise BundleError(f"{file}: threshold is negative, which means unset; calibrate it by training again")


def _sae_lens_cfg(manifest: Manifest) -> dict[str, Any]:
    """The SAELens configuration under which SAELens computes the same features."""
    encoder = manifest.encoder
    cfg: dict[str, Any] = {
        "architecture": "topk" if encoder.selection == "topk" else "jumprelu",
        "d_in": encoder.d_in,
        "d_sae": encoder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _SAE_LENS_VERSION,
            "hook_name": manifest.hook,
            "model_name": manifest.model,
        },
    }
    if encoder.selection == "topk":
        cfg |= {"k": encoder.k, "rescale_acts_by_decoder_norm": False}
    return cfg


def _check_cfg(path: Path, manifest: Manifest) -> None:
    try:
        cfg = json.loads((path / CFG).read_text())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / CFG} is not readable JSON ({error}); copy it again") from error
    for key, expected in _sae_lens_cfg(manifest).items():
        if key not in ("metadata", "device") and (not isinstance(cfg, dict) or cfg.get(key) != expected):
            raise BundleError(f"{path / CFG} and {MANIFEST} disagree on {key}; copy the bundle again")
