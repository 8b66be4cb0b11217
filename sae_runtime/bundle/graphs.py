"""The one table of the graphs of a bundle: what each is called, what it is for, and which bundles have it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_runtime.bundle.manifest import Manifest

GROUP = 16  # neighbouring features that the graphs look at together
SMALLEST_INT8 = 512  # features; a product with fewer is as fast as all that int8 could save of it


@dataclass(frozen=True)
class BundleGraph:
    """A graph that `export` puts into a bundle.

    Attributes:
        file: its name in the bundle's folder.
        purpose: what it is for.
        condition: which bundles have it, in words.
        fits: the same condition of a bundle's manifest.
        asked_as: the name by which `export` is asked for it; None where every export makes it.
        by_default: whether `export` makes it where nobody names graphs.
        row_independent: whether a row of its output depends on that row of its input alone.
        reads_derived: whether it may read `derived.safetensors` too; the record in the manifest says whether it does.
    """

    file: str
    purpose: str
    condition: str = "every bundle"
    fits: "Callable[[Manifest], bool]" = lambda manifest: True
    asked_as: str | None = None
    by_default: bool = True
    row_independent: bool = True
    reads_derived: bool = False


def _suits_int8(manifest: "Manifest") -> bool:
    d_sae = manifest.architecture.d_sae
    return GPU.fits(manifest) and d_sae >= SMALLEST_INT8 and d_sae % GROUP == 0


def _chooses_over_batches(manifest: "Manifest") -> bool:
    return manifest.allocation is not None and manifest.allocation.kind != "token"


ENCODE = BundleGraph("encode.onnx", "activations to features, each token by itself")
EXACT = BundleGraph(
    "encode_exact.onnx",
    "the same features from an int8 product and float32, each token certified",
    "d_sae is a multiple of 16 from 512 on, and top k or a threshold above 0 selects",
    _suits_int8,
    asked_as="exact",
    reads_derived=True,
)
GPU = BundleGraph(
    "encode_gpu.onnx",
    "the same features from a float16 product on a GPU, each token certified",
    "top k or a threshold selects",
    lambda manifest: manifest.architecture.selection != "groupmax",
    asked_as="gpu",
    by_default=False,
    reads_derived=True,
)
JOINT = BundleGraph(
    "encode_joint.onnx",
    "the exact batch rule",
    "mutual or feature choice, which spend the matches of a whole batch",
    _chooses_over_batches,
    row_independent=False,
    reads_derived=True,
)
DECODE = BundleGraph("decode.onnx", "features back to activations")
STEER = BundleGraph(
    "steer.onnx",
    "edits of features in activations",
    "every bundle but a transcoder's, which does not reconstruct its input",
    lambda manifest: manifest.architecture.d_out is None,
    reads_derived=True,
)

GRAPHS = (ENCODE, EXACT, GPU, JOINT, DECODE, STEER)
ON_REQUEST = {graph.asked_as: graph for graph in GRAPHS if graph.asked_as is not None}
BY_DEFAULT = tuple(name for name, graph in ON_REQUEST.items() if graph.by_default)


def export_options(file: str) -> str:
    """The options by which `sae-runtime export` makes this graph too; empty where it does so without any.

    >>> export_options("encode_gpu.onnx")
    ' --graph exact --graph gpu'
    >>> export_options("encode.onnx")
    ''
    """
    missing = [name for name, graph in ON_REQUEST.items() if graph.file == file and not graph.by_default]
    return "".join(f" --graph {name}" for name in (*BY_DEFAULT, *missing)) if missing else ""
