"""Random SAEs of sparsify."""

from typing import Any

import torch
from foreign import randomise
from torch import Tensor

# name: architecture, settings
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {"k": 5}),
    "topk wide": ("topk", {"k": 8, "num_latents": 512}),
    "topk beyond the positives": ("topk", {"k": 60}),
    "by factor": ("topk", {"k": 5, "num_latents": 0, "expansion_factor": 3}),
    "groupmax": ("groupmax", {"k": 8, "activation": "groupmax"}),
    "skip": ("topk skip", {"k": 5, "skip_connection": True}),
    "transcoder": ("topk transcoder", {"k": 5, "transcode": True}),
    "skip transcoder": ("topk skip transcoder", {"k": 5, "transcode": True, "skip_connection": True}),
    "groupmax skip transcoder": (
        "groupmax skip transcoder",
        {"k": 16, "activation": "groupmax", "transcode": True, "skip_connection": True},
    ),
}


def make(**settings: Any) -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(16, SparseCoderConfig(**{"num_latents": 64, **settings}))
    randomise(coder)
    return coder


def encode(coder: Any, x: Tensor) -> Tensor:
    values, indices, _ = coder.encode(x)
    return torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)
