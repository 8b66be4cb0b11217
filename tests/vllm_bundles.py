"""Bundles of every kind for SmolLM2 at layer 10, whose directions and thresholds come from the model's activations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases_common import Rows, hooked
from numpy.typing import NDArray

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.normalise import normalised
from sae_runtime.bundle.stats import counted
from sae_runtime.train.measure.torch_sae import open_sae

HOOK, D_IN, D_SAE, K = "layers.10", 576, 1152, 24
KINDS: dict[str, dict[str, Any]] = {
    "threshold": {"selection": "threshold"},
    "topk": {"selection": "topk", "k": K},
    "groupmax": {"selection": "groupmax", "k": K},
    "layer": {"selection": "threshold", "norm": "layer"},
    "length": {"selection": "threshold", "norm": "length"},
    "transcoder": {"selection": "threshold", "pre_bias": False, "d_out": D_IN, "skip": True},
}


def activations_of(model: Any, tokenizer: Any, text: str, window: int = 128) -> Rows:
    """Activations [n, 576] of a text in windows, without the first token of each, whose norm is massive."""
    ids = tokenizer(text)["input_ids"]
    windows = [torch.tensor([ids[begin : begin + window]]) for begin in range(0, len(ids) - window, window)]
    with torch.no_grad():
        passes = [hooked(model.base_model, HOOK, lambda one=one: model.base_model(one))[0] for one in windows]  # type: ignore[misc]
    return np.concatenate([x[0, 1:] for x in passes])


def write_bundle(path: Path, kind: str, x: Rows) -> Path:
    """Write a bundle of one of `KINDS`, with stats, and with the label "feature N" of every tenth feature.

    Its directions are those of some of the activations x [n, 576] from their mean.
    """
    architecture = Architecture(d_in=D_IN, d_sae=D_SAE, **KINDS[kind])
    given = normalised(x, architecture.norm)[0]
    mean = given.mean(axis=0) if architecture.pre_bias else np.zeros(D_IN)
    chosen = given[np.random.default_rng(0).permutation(len(given))[:D_SAE]] - given.mean(axis=0)
    decoder = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    weights: dict[str, NDArray[Any]] = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": np.zeros(D_SAE) if architecture.pre_bias else -decoder @ given.mean(axis=0),
        "b_dec": mean,
    }
    threshold = architecture.selection == "threshold"
    if threshold:
        z = np.maximum((given - mean) @ decoder.T + weights["b_enc"], 0)
        weights["threshold"] = np.full(D_SAE, np.quantile(z, 1 - K / D_SAE))
    if architecture.skip:
        weights["W_skip"] = np.eye(D_IN) / 2
    manifest = Manifest(
        architecture=architecture,
        allocation=Allocation(kind="mutual" if threshold else "token", k=float(K)),
        slots=D_SAE if threshold else K,
        model="SmolLM2-135M-Instruct",
        hook=HOOK,
        hook_out="layers.11" if architecture.d_out else None,
    )
    bundle.write(path, {name: np.ascontiguousarray(a, np.float32) for name, a in weights.items()}, manifest)
    f = open_sae(path).features(torch.from_numpy(x)).numpy()
    bundle.put_stats(bundle.read(path), counted((f > 0).sum(axis=0), f.max(axis=0), len(f)))
    write_labels(path, {feature: f"feature of row {feature}" for feature in range(0, D_SAE, 10)})
    return path
