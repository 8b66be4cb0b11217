"""The sizes that a manifest may record, so that no more is read, hashed or mapped than an SAE of its size has."""

import math
from collections.abc import Mapping

from sae_runtime.bundle.manifest import Architecture, Manifest
from sae_runtime.bundle.regular import LARGEST_JSON

_HEADER = 1 << 20  # bytes; of a safetensors file
_GRAPH = 1 << 24  # bytes; the graphs of `export` have a few KB
_OF_A_FEATURE = 1 << 12  # bytes; stats may hold more tensors than ours
SAMPLE_ROWS = 4096  # at most


def check_sizes(manifest: Manifest, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a manifest whose files cannot be those of its SAE; nothing but the manifest is read.

    Args:
        manifest: the manifest.
        weights: the shapes of the weights.

    Raises:
        ValueError: a file is too large or is none of a bundle, or a graph reads one that is not listed.

    >>> from sae_runtime.bundle.manifest import FileRecord
    >>> architecture = Architecture(d_in=24, d_sae=150, selection="topk", k=6)
    >>> files = {"sae_weights.safetensors": FileRecord(size=10**12, sha256="")}
    >>> manifest = Manifest(architecture=architecture, allocation=None, slots=6, files=files)
    >>> check_sizes(manifest, {"W_enc": (24, 150), "W_dec": (150, 24), "b_enc": (150,), "b_dec": (24,)})
    Traceback (most recent call last):
    ValueError: sae_weights.safetensors cannot have 1,000,000,000,000 bytes, expected at most 1,078,072 ...
    """
    bounds = _most_bytes(manifest.architecture, weights)
    if unknown := manifest.files.keys() - bounds.keys():
        raise ValueError(f"{min(unknown)} is listed, which is no file of a bundle; make the bundle again")
    sizes = {name: record.size for name, record in manifest.graphs.items()}
    for name, size in {**sizes, **{name: record.size for name, record in manifest.files.items()}}.items():
        if not 0 <= size <= (most := bounds.get(name, _GRAPH)):
            raise ValueError(
                f"{name} cannot have {size:,} bytes, expected at most {most:,} for an SAE of this size; "
                "make the bundle again"
            )
    for name, graph in manifest.graphs.items():
        if graph.derived and "derived.safetensors" not in manifest.files:
            raise ValueError(f"{name} reads derived.safetensors, which is not listed; make the bundle again")


def _most_bytes(architecture: Architecture, weights: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    d_in, d_sae = architecture.d_in, architecture.d_sae
    return {
        "sae_weights.safetensors": 4 * sum(map(math.prod, weights.values())) + _HEADER,
        "cfg.json": LARGEST_JSON,
        "sample.safetensors": 4 * SAMPLE_ROWS * d_in + _HEADER,
        "stats.safetensors": _OF_A_FEATURE * d_sae + _HEADER,
        # The encoder in int8 and float16 and by rows, a change of basis, and some numbers of each feature.
        "derived.safetensors": 16 * d_in * d_sae + 16 * d_in**2 + 256 * (d_in + d_sae) + _HEADER,
    }
