"""What the cases with host models share: SAEs with random weights and a splice, and how its slots are read."""

from pathlib import Path
from typing import Any

import numpy as np
from cases_common import Weights
from numpy.typing import NDArray
from tiny_host import Arrays, run

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice


def random_weights(d_in: int, d_sae: int, threshold: float, bias: float = 1.0) -> dict[str, NDArray[np.float32]]:
    """Unit directions, the encoder's as the decoder's, biases times `bias`, and one threshold."""
    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((d_sae, d_in))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    weights = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": bias * rng.normal(-0.05, 0.05, d_sae),
        "b_dec": bias * rng.normal(0, 0.2, d_in),
        "threshold": np.full(d_sae, threshold),
    }
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in weights.items()}


def random_sae(
    path: Path, d_in: int = 32, d_sae: int = 160, *, threshold: float = 0.8, slots: int | None = None, bias: float = 1.0
) -> Weights:
    """Write and export a bundle of mutual choice (BatchTopK) with random weights, and give them."""
    weights = random_weights(d_in, d_sae, threshold, bias)
    manifest = Manifest(
        architecture=Architecture(d_in=d_in, d_sae=d_sae, selection="threshold"),
        allocation=Allocation(kind="mutual", k=8.0),
        slots=slots or d_sae,
    )
    bundle.write(path, weights, manifest)
    export(path)
    return weights


def spliced(host: Path, sae: Path, hook: str, out: Path) -> tuple[Path, str]:
    """Put an SAE into a host model's graph; give the new graph and the name of the tensor that the SAE reads there."""
    made = splice(host, [Splice(bundle=sae, hook=hook)], out, force=True)
    return made.path, made.splices[0].tensor


def read_features(graph: Path, feed: Arrays, d_sae: int) -> NDArray[np.float32]:
    """The activations of features [b, t, d_sae] that a spliced graph gives."""
    return dense(run(graph, feed, read=True), d_sae)


def dense(outputs: Arrays, d_sae: int) -> NDArray[np.float32]:
    """Slots of features as an array [b, t, d_sae]; an empty slot has the value 0."""
    indices, values = outputs["sae_indices"], outputs["sae_values"]
    features = np.zeros((*values.shape[:-1], d_sae), np.float32)
    for slot in range(values.shape[-1]):
        index, value = indices[..., slot, None], values[..., slot, None]
        kept = np.where(value > 0, value, np.take_along_axis(features, index, axis=-1))
        np.put_along_axis(features, index, kept, axis=-1)
    return features


def edit_inputs(edits: list[Edit], d_sae: int) -> dict[str, Any]:
    """The inputs of a spliced graph that carry one list of edits."""
    return {f"sae_{name}": array for name, array in as_inputs([edits], d_sae).items()}
