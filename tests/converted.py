"""Bundles converted from SAELens checkpoints, and the formulas of SAELens in torch and float64."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from conftest import D_IN
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export

D_SAE = 150
JUMP = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
SAELENS: dict[str, dict[str, Any]] = {
    "layer norm": {"architecture": "topk", "k": 6, "normalize_activations": "layer_norm"},
    "length": {**JUMP, "normalize_activations": "constant_norm_rescale"},
    "pre-bias": {"architecture": "jumprelu", "apply_b_dec_to_input": True},
    "no pre-bias": JUMP,
}


@dataclass(frozen=True)
class Converted:
    """A bundle, and what SAELens computes from the same weights."""

    path: Path
    settings: dict[str, Any]
    weights: dict[str, Tensor]

    def features(self, x: NDArray[Any]) -> Tensor:
        """Dense features [..., d_sae] of activations."""
        given, w = self._normalised(x), self.weights
        bias = w["b_dec"] if self.settings.get("apply_b_dec_to_input", True) else 0
        z = torch.relu((given - bias) @ w["W_enc"] + w["b_enc"])
        if "threshold" in w:
            return z * (z > w["threshold"])
        top = z.topk(self.settings["k"], dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values)

    def decoded(self, f: Tensor, x: NDArray[Any]) -> Tensor:
        """Reconstructions of the activations x from features f."""
        mean, size = self._scale(x)
        return (f @ self.weights["W_dec"] + self.weights["b_dec"]) * size + mean

    def _normalised(self, x: NDArray[Any]) -> Tensor:
        mean, size = self._scale(x)
        given = torch.from_numpy(x).double() - mean
        return given / (size + 1e-5) if self._norm == "layer_norm" else given / size

    def _scale(self, x: NDArray[Any]) -> tuple[Tensor, Tensor]:
        given = torch.from_numpy(x).double()
        if self._norm == "layer_norm":
            return given.mean(-1, keepdim=True), given.std(-1, keepdim=True)
        one = torch.ones(1, dtype=torch.float64)
        return 0 * one, given.norm(dim=-1, keepdim=True) / D_IN**0.5 if self._norm else one

    @property
    def _norm(self) -> str | None:
        return self.settings.get("normalize_activations")


def converted(folder: Path, name: str) -> Converted:
    """An SAE with random weights and the settings SAELENS[name], saved as SAELens does, converted and exported."""
    settings, rng = SAELENS[name], np.random.default_rng(3)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    weights = {key: rng.normal(0, 0.3, shape).astype(np.float32) for key, shape in shapes.items()}
    if settings["architecture"] == "jumprelu":
        weights["threshold"] = rng.uniform(0.5, 2, D_SAE).astype(np.float32)
    (folder / "foreign").mkdir(parents=True)
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "layer"}
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "metadata": metadata}
    (folder / "foreign" / "cfg.json").write_text(json.dumps({**sizes, **settings}))
    safetensors.numpy.save_file(weights, folder / "foreign" / "sae_weights.safetensors")
    convert(folder / "foreign", folder / "sae")
    export(folder / "sae", graphs=())
    return Converted(folder / "sae", settings, {key: torch.from_numpy(a).double() for key, a in weights.items()})
