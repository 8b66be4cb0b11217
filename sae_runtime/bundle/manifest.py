"""The manifest of a bundle: what the SAE is, where it came from and what was measured."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.typed_json import from_dict, read_json

SCHEMA_VERSION = 2


SELECTIONS = ("topk", "groupmax", "threshold")
NORMS = ("none", "layer", "length")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an SAE computes: z = relu((x' - b_pre) W_enc + b_enc), of which the selection keeps some.

    The reconstruction is size * (f W_dec + b_dec) + mean + x W_skip^T, where f are the features that are kept. Only
    positive features are kept, so it makes no difference whether relu comes before or after the selection.

    Attributes:
        d_in: numbers in an activation x.
        d_sae: number of features.
        selection: "topk" keeps the k largest z of every token, "groupmax" the largest of each of k runs of neighbours,
            "threshold" those with z > threshold (one per feature).
        k: features that "topk" and "groupmax" keep; None for "threshold".
        pre_bias: whether b_pre is b_dec; otherwise b_pre is 0.
        norm: how x' is made of x. "none": x, with mean 0 and size 1. "layer": (x - mean) / (size + 1e-5), by each
            token's mean and standard deviation (of d_in - 1 degrees of freedom). "length": x / size with
            size = |x| / sqrt(d_in).
        d_out: numbers of the activation that a transcoder reconstructs; None if the SAE reconstructs x itself.
        skip: whether there is a W_skip.

    >>> Architecture(d_in=24, d_sae=150, selection="topk", k=6).d_x_hat
    24
    """

    d_in: int
    d_sae: int
    selection: str
    k: int | None = None
    pre_bias: bool = True
    norm: str = "none"
    d_out: int | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_sae < 1:
            raise ValueError(f"d_in and d_sae must be at least 1, got {self.d_in} and {self.d_sae}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if (self.k is None) != (self.selection == "threshold"):
            raise ValueError("k belongs to selections 'topk' and 'groupmax', and only there")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k must be in [1, d_sae={self.d_sae}], got {self.k}")
        if self.selection == "groupmax" and self.d_sae % (self.k or 1):
            raise ValueError(f"groupmax needs a k that divides d_sae={self.d_sae}, got {self.k}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.norm == "layer" and self.d_in < 2:
            raise ValueError("one number has no standard deviation; norm 'layer' needs d_in of at least 2")
        if self.d_out is not None and (self.d_out < 1 or self.pre_bias or self.norm != "none"):
            raise ValueError("a transcoder has d_out of at least 1, no pre_bias and no norm")

    @property
    def d_x_hat(self) -> int:
        """Numbers of a reconstruction."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def decodes_with_x(self) -> bool:
        """Whether the reconstruction needs the activations too: for their mean and size, or for the skip."""
        return self.norm != "none" or self.skip


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How a batch selects its matches, k a token on average.

    "token" is TopK: the k largest activations of every token. "mutual" is BatchTopK: the k n largest of all n tokens.
    "feature" is BatchTopK with a limit on each feature's density.

    Attributes:
        kind: "token", "mutual" or "feature".
        k: matches a token that are asked for.
        quota: the limits of "feature"; feature i has rank i + 1, since features are saved by falling limit.

    >>> Allocation(kind="mutual", k=6.0).k
    6.0
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
    """A graph of the bundle.

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
class LeftOut:
    """Rows that were left out of scale, training, calibration and figures; serving encodes them as any other.

    Attributes:
        norm_multiple: rows whose norm exceeds this multiple of the median norm; None: norms do not matter.
        first_positions: the tokens at the start of each document.
        token_ids: tokens by id.
        rows: how many rows were left out of each part.
    """

    norm_multiple: float | None = None
    first_positions: int = 0
    token_ids: tuple[int, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`sae_runtime.json`: what the SAE is, where it came from, what was measured, and the hash of every file."""

    architecture: Architecture
    allocation: Allocation | None  # None: the batch rule is not known
    slots: int  # slots of a token in encode.onnx; a token that fills all of them is encoded again with more
    model: str | None = None  # name of the host model
    hook: str | None = None  # where the activation is, as `str(parse_hook(text))`: it holds the side and the call
    hook_out: str | None = None  # the same for what a transcoder reconstructs
    measured: Mapping[str, float] = field(default_factory=dict)  # on held-out activations; see docs/architecture.md
    left_out: LeftOut | None = None  # None: no row
    measured_with_left_out: Mapping[str, float] = field(default_factory=dict)  # the same figures over all rows
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    graphs: Mapping[str, GraphRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= self.architecture.d_sae:
            raise ValueError(f"slots must be in [1, d_sae={self.architecture.d_sae}], got {self.slots}")
        if self.allocation is not None:
            _check_allocation(self.architecture, self.allocation)
        k = self.architecture.k
        if k is not None and k != self.slots:
            raise ValueError(f"a token that keeps {k} features has as many slots, got {self.slots}")
        for name in (*self.files, *self.graphs):
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is not the name of a file in the bundle's own folder")

    @property
    def batch_allocation(self) -> Allocation:
        """The allocation, or ValueError if it is not known."""
        if self.allocation is None:
            raise ValueError(
                "this SAE comes without an allocation, so it has no batch rule; use encode (--rule served)"
            )
        return self.allocation


def _check_allocation(architecture: Architecture, allocation: Allocation) -> None:
    if allocation.k > architecture.d_sae:
        raise ValueError(f"k must be at most d_sae={architecture.d_sae}, got {allocation.k:g}")
    if (allocation.kind == "token") != (architecture.selection != "threshold"):
        raise ValueError("token choice is served by 'topk' or 'groupmax', the other allocations by 'threshold'")
    if architecture.k is not None and architecture.k != allocation.k:
        raise ValueError(f"token choice has one k, got {architecture.k} and {allocation.k:g}")


def to_json(manifest: Manifest) -> str:
    """The text of `sae_runtime.json`.

    >>> architecture = Architecture(d_in=24, d_sae=150, selection="topk", k=6)
    >>> manifest = Manifest(architecture=architecture, allocation=None, slots=6)
    >>> from_json(to_json(manifest)) == manifest
    True
    """
    return json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Manifest:
    """The manifest of a text of `sae_runtime.json`.

    Raises:
        ValueError: the text is not JSON, of another schema version, or a field is missing, unknown or wrong.
    """
    try:
        data = read_json(Any, text, "it")
    except ValueError as error:
        raise ValueError(f"{error}; make the bundle again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"it has schema version {version}, this sae-runtime reads {SCHEMA_VERSION}; "
            "fit or convert the SAE again, then export it"
        )
    try:
        manifest: Manifest = from_dict(Manifest, data, "manifest")
    except ValueError as error:
        raise ValueError(f"{error}; make the bundle again") from error
    return manifest
