"""The matches of a batch in the two orders that a training step reads them in."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """m matches between n tokens and d_sae features, by token and within a token by feature; orders when asked for."""

    at: Tensor  # ascending positions in the flattened [n, d_sae], int64 [m]
    values: Tensor  # latents, float32 [m]
    n: int
    d_sae: int

    @cached_property
    def token(self) -> Tensor:
        """Token of each match, int64 [m]."""
        return self.at // self.d_sae

    @cached_property
    def feature(self) -> Tensor:
        """Feature of each match, int64 [m]."""
        return self.at - self.token * self.d_sae

    @cached_property
    def token_begin(self) -> Tensor:
        """Where the matches of each token begin, and the end: int64 [n + 1]."""
        counts = torch.bincount(self.token, minlength=self.n)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    @cached_property
    def counts(self) -> Tensor:
        """Matches of each feature, int64 [d_sae]."""
        return torch.bincount(self.feature, minlength=self.d_sae)

    @cached_property
    def by_feature(self) -> Tensor:
        """The order that sorts the matches by feature, then token: int64 [m]."""
        return self.feature.argsort(stable=True)

    @cached_property
    def feature_begin(self) -> Tensor:
        """Where the matches of each feature begin in that order: int64 [d_sae]."""
        return self.counts.cumsum(0) - self.counts
