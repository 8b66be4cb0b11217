"""Answers of a torch model, token by token with its own keys and values, while numpy edits features at a hook."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.exports import witness

Features = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Plan = Callable[[int], tuple[Sequence[Edit], Sequence[float]]]
"""The edits of a step, and how much of them each of its tokens gets; step 0 reads the prompt."""


@torch.no_grad()
def written(
    model: Any,
    hook: str,
    weights: Mapping[str, NDArray[np.float32]],
    features: Features,
    prompt: Sequence[int],
    steps: int,
    plan: Plan,
    *,
    cache: bool = True,
) -> tuple[list[int], list[NDArray[np.float64]]]:
    """The most likely tokens, and the features [t, d_sae] of the tokens that each step reads.

    Args:
        model: a causal language model.
        hook: the module whose output is edited.
        weights: of the SAE.
        features: of activations [t, d_in].
        prompt: ids.
        steps: number of tokens.
        plan: the edits of each step.
        cache: keep keys and values; without it all tokens are read again, by the same edits and their own gates.
    """
    seen: list[NDArray[np.float64]] = []
    asked: list[tuple[Sequence[Edit], Sequence[float]]] = []

    def act(_module: Any, _given: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).numpy()
        f = features(x[0].astype(np.float64))
        edits, gate = asked[-1]
        if not cache:
            gate = [one for _, gates in asked for one in gates]
        seen.append(f if cache or len(asked) == 1 else f[-1:])
        if not edits:
            return None
        fields = {"scale": "factor", "shift": "shift", "low": "low", "high": "high"}
        numbers = {name: [[getattr(edit, field) for edit in edits]] for name, field in fields.items()}
        which, amount = np.array([[edit.feature for edit in edits]]), np.asarray(gate, np.float64)[None, :, None]
        y = torch.from_numpy(witness.steer(weights, x, f[None], which, **numbers, gate=amount).astype(np.float32))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = model.get_submodule(hook).register_forward_hook(act)
    ids, past, answer = torch.tensor([list(prompt)]), None, []
    try:
        for step in range(steps):
            asked.append(plan(step))
            result = model(ids, past_key_values=past, use_cache=True) if cache else model(ids)
            past = result.past_key_values if cache else None
            answer.append(int(result.logits[0, -1].argmax()))
            ids = torch.tensor([answer[-1:] if cache else [*prompt, *answer]])
    finally:
        handle.remove()
    return answer, seen
