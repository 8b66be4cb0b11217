"""Rotary positions in real numbers, for models that have them in complex ones, which torch's exporter lacks."""

from collections.abc import Callable
from typing import Any

import torch


def rotate(heads: int) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """What transformers' `apply_rotary_emb(queries, keys, freqs_cis)` computes, where `heads` is the axis of heads.

    >>> one = torch.ones(1, 1, 1, 2)
    >>> rotate(1)(one, one, torch.tensor([[[1j]]]))[0].flatten().tolist()
    [-1.0, 1.0]
    """

    def apply(queries: Any, keys: Any, freqs_cis: Any) -> tuple[Any, Any]:
        cos, sin = (part.unsqueeze(heads) for part in torch.view_as_real(freqs_cis).unbind(-1))

        def turned(x: Any) -> Any:
            real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            both = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
            return both.flatten(-2).type_as(x)

        return turned(queries), turned(keys)

    return apply
