"""The thresholds of a fitted model: torch makes its pre-activations block by block, and `calibration` fits to them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.calibration.thresholds import thresholds
from sae_runtime.train.step.model import SparseAutoencoder, encoded

_BLOCK_ELEMENTS = 1 << 25  # pre-activations [n, block of features]


def fit_thresholds(
    model: SparseAutoencoder,
    x: Tensor,
    k: float,
    max_density: NDArray[np.float64] | None = None,
    *,
    more: Tensor | None = None,
    elements: int = _BLOCK_ELEMENTS,
) -> NDArray[np.float32]:
    """The threshold of each feature, float32 [d_sae], with which the mean L0 is k; see `calibration.thresholds`.

    Args:
        model: the fitted model.
        x: calibration activations, scaled as the model expects, [n, d_in].
        k: the mean L0 that is asked for.
        max_density: the largest density of each feature, float64 [d_sae]; None unless the allocation is feature choice.
        more: further activations for the limits of feature choice, [m, d_in]: a rare feature fires on too few tokens of
            a small calibration part to tell its density.
        elements: the most pre-activations in memory at once.

    >>> x = torch.eye(4)
    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> float((model.pre_activations(x).detach().numpy() > fit_thresholds(model, x, k=2.0)).sum())
    8.0
    """
    tokens = len(x)
    if more is not None and max_density is not None:
        x = torch.cat([x, more])
    return thresholds(_blocks(model, x, max(elements // len(x), 1)), tokens, k, max_density)


@torch.no_grad()
def _blocks(model: SparseAutoencoder, x: Tensor, step: int) -> Iterator[NDArray[np.float32]]:
    for begin in range(0, len(model.b_enc), step):
        block = slice(begin, begin + step)
        z = encoded(x, model.W_enc[block], model.b_enc[block], model.b_dec)
        yield z.T.contiguous().cpu().numpy()
