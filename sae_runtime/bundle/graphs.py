"""The one table of the graphs of a bundle: their names, which bundles have them, and which of them `export` makes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_runtime.bundle.manifest import Manifest

GROUP = 16  # neighbouring features that the graphs look at together
SMALLEST_INT8 = 512  # features; with fewer, an int8 product saves no time


@dataclass(frozen=True)
class BundleGraph:
    """A graph that `export` puts into a bundle.

    Attributes:
        file: its name in the bundle's folder.
        fits: whether a bundle with this manifest can have the graph.
        asked_as: the name by which a user asks `export` for it; None if every export makes it.
        by_default: whether `export` makes it if the user names no graphs.
        row_independent: whether a row of its output depends on that row of its input alone.
        reads_derived: whether it may read `derived.safetensors`; its record in the manifest says whether it does.

    >>> STEER.file
    'steer.onnx'
    """

    file: str
    fits: "Callable[[Manifest], bool]" = lambda manifest: True
    asked_as: str | None = None
    by_default: bool = True
    row_independent: bool = True
    reads_derived: bool = False


def _suits_int8(manifest: "Manifest") -> bool:
    d_sae = manifest.architecture.d_sae
    return GPU.fits(manifest) and d_sae >= SMALLEST_INT8 and d_sae % GROUP == 0


def _has_batch_rule(manifest: "Manifest") -> bool:
    return manifest.allocation is not None and manifest.allocation.kind != "token"


ENCODE = BundleGraph("encode.onnx")  # activations to features, by one dense product in float32
# The same features: an int8 product bounds every feature, and float32 decides.
EXACT = BundleGraph("encode_exact.onnx", _suits_int8, asked_as="exact", reads_derived=True)
# The same features: a float16 product on a GPU bounds every feature, and float32 decides.
GPU = BundleGraph(
    "encode_gpu.onnx",
    lambda manifest: manifest.architecture.selection != "groupmax",
    asked_as="gpu",
    by_default=False,
    reads_derived=True,
)
# The exact batch rule over all rows of one call.
JOINT = BundleGraph("encode_joint.onnx", _has_batch_rule, row_independent=False, reads_derived=True)
DECODE = BundleGraph("decode.onnx")  # features to reconstructions
# Edits of features in activations. A transcoder has none, since it does not reconstruct its input.
STEER = BundleGraph("steer.onnx", lambda manifest: manifest.architecture.d_out is None, reads_derived=True)

GRAPHS = (ENCODE, EXACT, GPU, JOINT, DECODE, STEER)
ENCODERS = tuple(graph.file for graph in (ENCODE, EXACT, GPU))
"""Graphs that encode each token by itself. All give the same matches."""
ON_REQUEST = {graph.asked_as: graph for graph in GRAPHS if graph.asked_as is not None}
BY_DEFAULT = tuple(name for name, graph in ON_REQUEST.items() if graph.by_default)


def export_options(file: str) -> str:
    """The options with which `sae-runtime export` also makes this graph; empty if it makes the graph without options.

    >>> export_options("encode_gpu.onnx")
    ' --graph exact --graph gpu'
    >>> export_options("encode.onnx")
    ''
    """
    missing = [name for name, graph in ON_REQUEST.items() if graph.file == file and not graph.by_default]
    return "".join(f" --graph {name}" for name in (*BY_DEFAULT, *missing)) if missing else ""
