"""The stats of a bundle, `stats.safetensors`: how often each feature was active on measured tokens, and how strongly.

The file holds density and largest, F32 [d_sae], and tokens, I64 [1]. Other tensors may stand beside them, and
`token_logits.py` reads those that `splice` adds; a file of these alone has no measured stats.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.tensors import map_tensor, read_header, save_tensors
from sae_runtime.bundle.token_logits import TokenLogits, has_logits

FILE = "stats.safetensors"


@dataclass(frozen=True)
class Stats:
    """The use of each feature by the served rule, on tokens that are not left out for their norm.

    Attributes:
        density: share of the tokens on which the feature is active, float32 [d_sae].
        largest: largest activation of the feature, float32 [d_sae]; 0 where it is active on no token.
        tokens: number of these tokens.

    >>> counted(np.array([1, 0]), np.array([2.5, 0.0]), tokens=4).largest.tolist()
    [2.5, 0.0]
    """

    density: NDArray[np.float32]
    largest: NDArray[np.float32]
    tokens: int


def counted(matches: NDArray[np.int64], largest: NDArray[Any], tokens: int) -> Stats:
    """Stats from the number of tokens on which each feature is active, [d_sae].

    >>> counted(np.array([1, 0]), np.array([2.5, 0.0]), 4).density.tolist()
    [0.25, 0.0]
    """
    return Stats((matches / max(tokens, 1)).astype(np.float32), np.asarray(largest, np.float32), tokens)


def save_stats(path: Path, stats: Stats | None, logits: TokenLogits | None = None) -> None:
    """Write the file, of measured stats, of logits, or of both.

    >>> save_stats(Path("stats.safetensors"), counted(np.array([1, 0]), np.array([2.5, 0.0]), 4))
    >>> read_stats(Path("stats.safetensors"), d_sae=2).largest.tolist()
    [2.5, 0.0]
    """
    tensors: dict[str, NDArray[Any]] = {} if logits is None else logits.tensors()
    if stats is not None:
        tensors |= {"density": stats.density, "largest": stats.largest, "tokens": np.array([stats.tokens], np.int64)}
    save_tensors(path, tensors)


def read_stats(path: Path, d_sae: int) -> Stats | None:
    """Read the file of an SAE with d_sae features; None where it holds logits alone.

    Raises:
        ValueError: the file does not hold such stats.
    """
    specs = read_header(path)
    if has_logits(specs) and "density" not in specs:
        return None
    forms = {"density": ("F32", (d_sae,)), "largest": ("F32", (d_sae,)), "tokens": ("I64", (1,))}
    for name, (dtype, shape) in forms.items():
        spec = specs.get(name)
        if spec is None or (spec.dtype, spec.shape) != (dtype, shape):
            found = "nothing" if spec is None else f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"{path}: {name} must be {dtype} {list(shape)}, found {found}; make the bundle again")
    density, largest, tokens = (np.array(map_tensor(path, specs[name])) for name in forms)
    # A comparison with NaN is false.
    if not (0 <= density).all() or not (density <= 1).all() or not ((0 <= largest) & np.isfinite(largest)).all():
        raise ValueError(f"{path}: densities must be from 0 to 1 and activations finite; make the bundle again")
    if tokens[0] < 0:
        raise ValueError(f"{path}: the number of tokens is {tokens[0]}; make the bundle again")
    return Stats(density, largest, int(tokens[0]))
