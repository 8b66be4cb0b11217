"""What an SAE is, where it came from and what it measured: the manifest of a bundle."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_runtime.quota import Quota

SCHEMA_VERSION = 1


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
    """The same of a graph, and two things to know of it.

    Attributes:
        size: in bytes.
        sha256: of its bytes.
        row_independent: whether a row of its output depends on that row of its input alone.
        derived: whether it reads `derived.safetensors` too.
    """

    size: int
    sha256: str
    row_independent: bool
    derived: bool = False


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a precision costs on the bundle's sample, against float64.

    Attributes:
        tokens: tokens of the sample that were compared.
        jaccard: features active in both over those active in either, mean over tokens.
        value_error: largest error of a value over the token's largest value, mean over tokens.
        fvu: fraction of variance unexplained.
        fvu_change: by how much that is more than float64's, as a share of it.
        redone: "exact" only: share of the tokens that are encoded again in full.
    """

    tokens: int
    jaccard: float
    value_error: float
    fvu: float
    fvu_change: float
    redone: float | None = None


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
    precisions: Mapping[str, Price] = field(default_factory=dict)  # of the graphs that were exported
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


def to_json(manifest: Manifest) -> str:
    """The text of `sae_runtime.json`."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Manifest:
    """The manifest of a text of `sae_runtime.json`.

    Raises:
        ValueError: the text is not JSON, of another schema version, or a field is missing, unknown or wrong.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not readable JSON ({error}); make the bundle again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"it has schema version {version}, this sae-runtime reads {SCHEMA_VERSION}; "
            "install the release that wrote it"
        )
    try:
        return typing.cast(Manifest, _build(Manifest, data, "manifest"))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{error}; make the bundle again") from error


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
