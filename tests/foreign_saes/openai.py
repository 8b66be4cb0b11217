"""OpenAI's package is not on PyPI, so this module holds the forward pass of `sparse_autoencoder/model.py`."""

from typing import Any

import torch
from torch import Tensor


def state(k: int | None, *, tied: bool = False) -> dict[str, Any]:
    """A random state_dict()."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    out: dict[str, Any] = {
        "pre_bias": random(16),
        "latent_bias": random(64),
        "stats_last_nonzero": torch.zeros(64, dtype=torch.long),
        "latents_activation_frequency": torch.ones(64),
        "latents_mean_square": torch.zeros(64),
        "encoder.weight": random(64, 16),
    }
    if tied:
        out["decoder.linear.weight"] = out["encoder.weight"]
    else:
        out["decoder.weight"] = random(16, 64)
    if k is None:
        return out | {"activation": "ReLU", "activation_state_dict": {}}
    return out | {"activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": "ReLU"}}


def forward(saved: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations of features and the reconstruction."""
    mean, size = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if saved["activation"] == "TopK":  # from_state_dict decides by this whether to normalise
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        size = x.std(dim=-1, keepdim=True)
        x = x / (size + 1e-5)
    before = torch.nn.functional.linear(x - saved["pre_bias"], saved["encoder.weight"], saved["latent_bias"])
    f = torch.relu(before)
    if saved["activation"] == "TopK":
        top = torch.topk(before, saved["activation_state_dict"]["k"], dim=-1)
        f = torch.zeros_like(before).scatter_(-1, top.indices, torch.relu(top.values))
    decoder = saved["decoder.weight"] if "decoder.weight" in saved else saved["encoder.weight"].T
    y = torch.nn.functional.linear(f, decoder) + saved["pre_bias"]
    return f, y * size + mean
