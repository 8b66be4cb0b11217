"""Sentence embeddings of a steered model, and the sentences nearest to another."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime import SAE, Edit
from sae_runtime.train.harvest.hook_point import activations_in, find_hook, with_activations

_BATCH = 32  # texts


def embed(
    tokenizer: Any,
    model: Any,
    texts: Sequence[str],
    *,
    hook: str = "",
    sae: SAE | None = None,
    edits: Sequence[Edit] = (),
) -> NDArray[np.float32]:
    """Embeddings [texts, width of the model] of length 1, by mean pooling.

    Args:
        tokenizer: the model's tokenizer.
        model: a transformers model.
        texts: the sentences; at most 128 tokens of each are read.
        hook: the module whose output is edited.
        sae: the SAE of that module.
        edits: the edits; without any, neither hook nor SAE is needed.
    """

    def steered(given: Any) -> Any:
        assert sae is not None
        x = activations_in(given, hook, ("batch", "time", "d_in"))
        return with_activations(given, torch.from_numpy(sae.steer(x.numpy(), edits)))

    out = []
    with find_hook(model, hook).watch(steered) if edits else contextlib.nullcontext():
        for begin in range(0, len(texts), _BATCH):
            part = list(texts[begin : begin + _BATCH])
            batch = tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            out.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    return np.concatenate(out)


def nearest(corpus: NDArray[np.float32], query: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The rows of a corpus [n, width] that are nearest to a query [width]: number and cosine, the nearest first.

    >>> nearest(np.eye(3, dtype=np.float32), np.array([0.0, 1.0, 0.5], np.float32), 2)
    [(1, 1.0), (2, 0.5)]
    """
    cosines = corpus @ query
    return [(int(number), float(cosines[number])) for number in np.argsort(-cosines, kind="stable")[:count]]
