"""A step whose auxiliary loss has the same to do in every batch."""

import torch
from torch import Tensor

from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Limits, Losses, Observe, Step


def with_fiftieth_under_used(step: Step) -> Step:
    """The step, with every fiftieth feature for its auxiliary loss; densities are kept as in any run."""

    def gradients(model: SparseAutoencoder, x: Tensor, limits: Limits, observe: Observe, w: float, k: int) -> Losses:
        def among(counts: Tensor, tokens: int) -> Tensor:
            return torch.arange(len(observe(counts, tokens)), device=counts.device) % 50 == 0

        return step(model, x, limits, among, w, k)

    return gradients
