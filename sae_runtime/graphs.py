"""The one table of the graphs of a bundle: what each is called, what it is for, and which bundles have it."""

from collections.abc import Callable
from dataclasses import dataclass

from sae_runtime.manifest import Manifest

GROUP = 16  # neighbouring features that the graphs look at together
SMALLEST_INT8 = 512  # features; a product with fewer is as fast as all that int8 could save of it


@dataclass(frozen=True, kw_only=True)
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
    condition: str
    fits: Callable[[Manifest], bool]
    asked_as: str | None = None
    by_default: bool = True
    row_independent: bool = True
    reads_derived: bool = False


def _any_bundle(manifest: Manifest) -> bool:
    return True


def _not_groupmax(manifest: Manifest) -> bool:
    return manifest.encoder.selection != "groupmax"


def _suits_int8(manifest: Manifest) -> bool:
    d_sae = manifest.encoder.d_sae
    return _not_groupmax(manifest) and d_sae >= SMALLEST_INT8 and d_sae % GROUP == 0


def _chooses_over_batches(manifest: Manifest) -> bool:
    return manifest.allocation is not None and manifest.allocation.kind != "token"


def _reconstructs_its_input(manifest: Manifest) -> bool:
    return manifest.encoder.d_out is None


ENCODE = BundleGraph(
    file="encode.onnx",
    purpose="activations to features, each token by itself",
    condition="every bundle",
    fits=_any_bundle,
)
EXACT = BundleGraph(
    file="encode_exact.onnx",
    purpose="the same features from an int8 product and float32, each token certified",
    condition="d_sae is a multiple of 16 from 512 on, and top k or a threshold above 0 selects",
    fits=_suits_int8,
    asked_as="exact",
    reads_derived=True,
)
GPU = BundleGraph(
    file="encode_gpu.onnx",
    purpose="the same features from a float16 product on a GPU, each token certified",
    condition="top k or a threshold selects",
    fits=_not_groupmax,
    asked_as="gpu",
    by_default=False,
    reads_derived=True,
)
JOINT = BundleGraph(
    file="encode_joint.onnx",
    purpose="the exact batch rule",
    condition="mutual or feature choice, which spend the matches of a whole batch",
    fits=_chooses_over_batches,
    row_independent=False,
    reads_derived=True,
)
DECODE = BundleGraph(
    file="decode.onnx",
    purpose="features back to activations",
    condition="every bundle",
    fits=_any_bundle,
)
STEER = BundleGraph(
    file="steer.onnx",
    purpose="edits of features in activations",
    condition="every bundle but a transcoder's, which does not reconstruct its input",
    fits=_reconstructs_its_input,
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
