"""A sentence encoder, steered: which sentences become the neighbours of another when a feature is turned up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime import SAE, Edit
from sae_runtime.train.harvest.host_model import find_module

_AT_ONCE = 32


@dataclass(frozen=True)
class Neighbours:
    """The sentences nearest to a query, and how close they are (cosine)."""

    sentences: tuple[int, ...]
    cosines: tuple[float, ...]


def embed(
    tokenizer: Any,
    model: Any,
    texts: Sequence[str],
    *,
    hook: str = "",
    sae: SAE | None = None,
    edits: Sequence[Edit] = (),
) -> NDArray[np.float32]:
    """Unit sentence embeddings [texts, width] by mean pooling; with edits, the SAE steers the hook's output."""

    def steered(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        assert sae is not None
        x = output[0] if isinstance(output, tuple) else output
        y = torch.from_numpy(sae.steer(x.numpy(), edits))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = find_module(model, hook).register_forward_hook(steered) if edits else None
    out = []
    try:
        for begin in range(0, len(texts), _AT_ONCE):
            batch = tokenizer(
                list(texts[begin : begin + _AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            out.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    finally:
        if handle is not None:
            handle.remove()
    return np.concatenate(out)


def nearest(corpus: NDArray[np.float32], query: NDArray[np.float32], count: int) -> Neighbours:
    """The `count` sentences of a corpus [n, width] nearest to a query [width]."""
    cosine = corpus @ query
    order = np.argsort(-cosine, kind="stable")[:count]
    return Neighbours(tuple(order.tolist()), tuple(cosine[order].tolist()))
