"""The tokens that each feature promotes and suppresses most, by the head of the model that the SAE was spliced into.

`stats.safetensors` holds them beside the measured stats: promoted_tokens and suppressed_tokens, I32 [d_sae, n], with
promoted_logits and suppressed_logits, F32 [d_sae, n]. `splice` computes them where the head's weights are floats in the
host's graph, and keeps them in the copy of the bundle that the deployed model has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.tensors import TensorSpec, map_tensor, read_header

COUNT = 10  # tokens that are kept of each feature, at either end
_TYPES = {"promoted_tokens": "I32", "promoted_logits": "F32", "suppressed_tokens": "I32", "suppressed_logits": "F32"}


@dataclass(frozen=True, eq=False)
class TokenLogits:
    """How much each feature adds to logits directly, for an activation of 1 where the last norm divides by 1.

    Attributes:
        promoted_tokens: the ids of the tokens whose logits it raises most, the most first, int32 [d_sae, n].
        promoted_logits: what it adds to these, float32 [d_sae, n].
        suppressed_tokens: the ids of the tokens whose logits it lowers most, the most first, int32 [d_sae, n].
        suppressed_logits: what it adds to these, float32 [d_sae, n].

    >>> one = TokenLogits(*(np.array([[i]]) for i in (5, 0.5, 7, -0.25)))
    >>> int(one.promoted_tokens[0, 0]), float(one.suppressed_logits[0, 0])
    (5, -0.25)
    """

    promoted_tokens: NDArray[np.int32]
    promoted_logits: NDArray[np.float32]
    suppressed_tokens: NDArray[np.int32]
    suppressed_logits: NDArray[np.float32]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays by their names in the file."""
        return {name: getattr(self, name).astype("<i4" if kind == "I32" else "<f4") for name, kind in _TYPES.items()}


def has_logits(specs: Mapping[str, TensorSpec]) -> bool:
    """Whether a file of stats has these tensors, or some of them.

    >>> has_logits({})
    False
    """
    return any(name in specs for name in _TYPES)


def read_logits(path: Path, d_sae: int) -> TokenLogits | None:
    """Read them from the stats of an SAE with d_sae features; None where they hold none.

    Raises:
        ValueError: the file holds them in another form.

    >>> from sae_runtime.bundle.tensors import save_tensors
    >>> save_tensors(Path("stats.safetensors"), TokenLogits(*np.ones((4, 2, 3), np.float32)).tensors())
    >>> read_logits(Path("stats.safetensors"), 2).promoted_tokens.tolist()
    [[1, 1, 1], [1, 1, 1]]
    """
    specs = read_header(path)
    if not has_logits(specs):
        return None
    first = specs.get("promoted_tokens")
    count = first.shape[1] if first is not None and len(first.shape) == 2 else COUNT
    for name, kind in _TYPES.items():
        spec = specs.get(name)
        if spec is None or (spec.dtype, spec.shape) != (kind, (d_sae, count)):
            found = "nothing" if spec is None else f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"{path}: {name} must be {kind} [{d_sae}, {count}], found {found}; splice the SAE again")
    read = TokenLogits(*(np.array(map_tensor(path, specs[name])) for name in _TYPES))
    for tokens, logits in (
        (read.promoted_tokens, read.promoted_logits),
        (read.suppressed_tokens, read.suppressed_logits),
    ):
        if tokens.size and (tokens.min() < 0 or not np.isfinite(logits).all()):
            raise ValueError(f"{path}: tokens must be 0 or more and logits finite; splice the SAE again")
    return read
