"""The manifest of a bundle, `sae_runtime.json`: the SAE's architecture, its origin and its figures."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.typed_json import read_json

FILE = "sae_runtime.json"
SCHEMA_VERSION = 2
SELECTIONS = ("topk", "groupmax", "threshold")
T = TypeVar("T")
NORMS = ("none", "layer", "length")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The function that an SAE computes.

    The pre-activations are z = relu((x' - b_pre) W_enc + b_enc) [d_sae]. The selection keeps some of them as f and sets
    the others to 0. The reconstruction is x_hat = size * (f W_dec + b_dec) + mean + x W_skip^T.

    Attributes:
        d_in: numbers in an activation x.
        d_sae: number of features.
        selection: "topk" keeps the k largest z of each token. "groupmax" divides the features into k runs of
            neighbours, and keeps the largest z of each run. "threshold" keeps z > threshold, one threshold a feature.
        k: features that "topk" and "groupmax" keep; None for "threshold".
        pre_bias: whether b_pre is b_dec; otherwise b_pre is 0.
        norm: how x' follows from x. "none": x' = x, with mean 0 and size 1. "layer": x' = (x - mean) / (size + 1e-5),
            with each token's mean and standard deviation (of d_in - 1 degrees of freedom). "length": x' = x / size,
            with size = |x| / sqrt(d_in).
        d_out: numbers in the activation that a transcoder reconstructs; None if the SAE reconstructs x.
        skip: whether there is a W_skip.

    Raises:
        ValueError: the fields contradict each other.

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
        """Numbers in a reconstruction."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def decodes_with_x(self) -> bool:
        """Whether the reconstruction also needs the activations: for their mean and size, or for the skip."""
        return self.norm != "none" or self.skip


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The rule by which the tokens of a batch get their matches (arXiv:2411.02124).

    "token" is token choice (TopK): each token keeps its k largest pre-activations. "mutual" is mutual choice
    (BatchTopK): n tokens together keep their round(k n) largest. "feature" is feature choice: BatchTopK with a limit on
    each feature's density.

    Attributes:
        kind: "token", "mutual" or "feature".
        k: matches a token that were asked for.
        quota: the limits of "feature". Features are saved by falling limit, so feature i has rank i + 1.

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
    """A graph of the bundle: size in bytes, sha256, and the answers to two questions.

    Attributes:
        row_independent: whether a row of its output depends on that row of its input alone.
        derived: whether it reads `derived.safetensors`.
    """

    size: int
    sha256: str
    row_independent: bool
    derived: bool = False


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Rows that scale, training, calibration and figures leave out. Serving encodes them like all others.

    Attributes:
        norm_multiple: rows are left out if their norm exceeds this multiple of the median norm; None: no such limit.
        first_positions: number of positions at the start of each window that were not harvested, special tokens
            counted.
        token_ids: ids of tokens that were not harvested.
        rows: number of rows left out for their norm, by part of the data.
    """

    norm_multiple: float | None = None
    first_positions: int = 0
    token_ids: tuple[int, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `sae_runtime.json`.

    Attributes:
        architecture: the function that the SAE computes.
        allocation: the batch rule; None if it is not known.
        slots: slots of a token in encode.onnx; the runtime encodes a token that fills all of them again with more.
        model: name of the host model.
        hook: where the activation is in the host model, in the form of `str(parse_hook(text))`.
        hook_out: where the activation is that a transcoder reconstructs.
        transformer_lens_hook: TransformerLens's name of the hook, where the model's modules proved one.
        measured: figures on held-out activations; docs/architecture.md lists them.
        left_out: the rows that training, calibration and `measured` leave out; None if that is not known.
        measured_with_left_out: the same figures over all held-out rows; empty if none was left out.
        provenance: how the SAE was made, as values of JSON.
        files: size and hash of each file but the manifest and the graphs.
        graphs: the graphs that `export` made.
        schema_version: version of this format.

    Raises:
        ValueError: the fields contradict each other.

    >>> sae.manifest.slots, sae.manifest.allocation
    (24, Allocation(kind='mutual', k=6.0, quota=None))
    """

    architecture: Architecture
    allocation: Allocation | None
    slots: int
    model: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    transformer_lens_hook: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut | None = None
    measured_with_left_out: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    graphs: Mapping[str, GraphRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        d_sae, k, allocation = self.architecture.d_sae, self.architecture.k, self.allocation
        if not 1 <= self.slots <= d_sae:
            raise ValueError(f"slots must be in [1, d_sae={d_sae}], got {self.slots}")
        if k is not None and k != self.slots:
            raise ValueError(f"a token that keeps {k} features has as many slots, got {self.slots}")
        if allocation is not None:
            if allocation.k > d_sae:
                raise ValueError(f"k must be at most d_sae={d_sae}, got {allocation.k:g}")
            if (allocation.kind == "token") != (k is not None):
                raise ValueError("token choice is served by 'topk' or 'groupmax', the other allocations by 'threshold'")
            if k is not None and k != allocation.k:
                raise ValueError(f"token choice has one k, got {k} and {allocation.k:g}")
        for name in (*self.files, *self.graphs):
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} is not the name of a file in the bundle's own folder")

    def check_d_in(self, d_in: int | None) -> None:
        """Raise ValueError if activations have another d_in; None is the d_in of a single number."""
        expected = self.architecture.d_in
        if d_in != expected:
            source = f" ({', '.join(filter(None, (self.model, self.hook)))})" if self.model or self.hook else ""
            raise ValueError(
                f"activations have d_in {d_in}, this SAE expects {expected}{source}; was another layer captured?"
            )

    def told(self, name: str, kind: type[T]) -> T:
        """A value of the provenance, which any program may have written; an empty one where it is of another type.

        >>> sae.manifest.told("rows", dict)
        {}
        """
        value = self.provenance.get(name)
        return value if isinstance(value, kind) else kind()

    @property
    def batch_allocation(self) -> Allocation:
        """The allocation; raises ValueError if it is not known."""
        if self.allocation is None:
            raise ValueError(
                "this SAE comes without an allocation, so it has no batch rule; use encode (--rule served)"
            )
        return self.allocation


def to_json(manifest: Manifest) -> str:
    """The text of `sae_runtime.json`.

    >>> architecture = Architecture(d_in=24, d_sae=150, selection="topk", k=6)
    >>> manifest = Manifest(architecture=architecture, allocation=None, slots=6)
    >>> from_json(to_json(manifest)) == manifest
    True
    """
    return json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> Manifest:
    """The manifest of a text of `sae_runtime.json`.

    Raises:
        ValueError: the text is not JSON or has another schema version, or a field is missing, unknown or wrong.
    """
    try:
        manifest: Manifest = read_json(Manifest, text, "manifest", version=SCHEMA_VERSION)
    except ValueError as error:
        raise ValueError(f"{error}; fit or convert the SAE again, then export it") from error
    return manifest
