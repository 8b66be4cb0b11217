"""BatchTopK is not a package, so this module holds the forward pass of its `sae.py`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CFG = {"act_size": 16, "dict_size": 64, "top_k": 5, "model_name": "tiny", "hook_point": "blocks.1", "dtype": "float32"}


def save(path: Path, **cfg: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write the files of its save_checkpoint, and return the weights and the settings."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (16, 64), "W_dec": (64, 16), "b_enc": (64,), "b_dec": (16,)}
    if cfg["sae_type"] == "jumprelu":
        shapes["jumprelu.log_threshold"] = (64,)
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    path.mkdir()
    torch.save(state, path / "sae.pt")
    (path / "config.json").write_text(json.dumps({**CFG, **cfg}))
    return state, {**CFG, **cfg}


def forward(state: dict[str, Tensor], cfg: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Its feature_acts and sae_out."""
    mean, size = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if cfg.get("input_unit_norm", False):
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        size = x.std(dim=-1, keepdim=True)
        x = x / (size + 1e-5)
    if cfg["sae_type"] == "jumprelu":
        before = torch.relu(x @ state["W_enc"] + state["b_enc"])
        acts = before * (before > torch.exp(state["jumprelu.log_threshold"])).float()
    elif cfg["sae_type"] == "vanilla":
        acts = torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"])
    else:
        before = torch.relu((x - state["b_dec"]) @ state["W_enc"])
        top = torch.topk(before, cfg["top_k"], dim=-1)
        acts = torch.zeros_like(before).scatter(-1, top.indices, top.values)
    return acts, (acts @ state["W_dec"] + state["b_dec"]) * size + mean
