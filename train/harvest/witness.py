"""What a torch model computes for a text at several hooks, as a witness for a graph of the same model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.train.harvest.forward import arguments, foreign_errors
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states
from sae_runtime.train.harvest.host_model import load_host_model

Rows = NDArray[np.float32]


def read_by_torch(
    name: str, hooks: Sequence[str], texts: Sequence[str]
) -> tuple[list[NDArray[np.int64]], Callable[[NDArray[np.int64]], list[Rows]]]:
    """The ids of texts, and a function from ids [t] to the activations [t, d_in] at each hook and the output [t, n].

    Args:
        name: a transformers folder or a model of the hub.
        hooks: where activations are read.
        texts: with one token or more each.

    Raises:
        ValueError: the model cannot be loaded or does not read text, or a hook names no place in it.

    >>> ids, read = read_by_torch("gpt2", ["h.3"], ["A text."])  # doctest: +SKIP
    """
    tokenizer, model = load_host_model(name, "cpu", head=True)
    points = [find_hook(model, hook) for hook in hooks]
    ids = [np.array(tokenizer(text)["input_ids"], np.int64) for text in texts]

    def read(window: NDArray[np.int64]) -> list[Rows]:
        tokens = torch.from_numpy(window)[None]
        given: dict[str, Any] = arguments(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
        found = hidden_states(points, model, given, ("batch", "time"), whole=True)
        with torch.inference_mode(), foreign_errors(model):
            output = next(iter(model(**given).values()))
        return [x[0].float().numpy() for x in (*found, output)]

    return [window for window in ids if len(window)], read
