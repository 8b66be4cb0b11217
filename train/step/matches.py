"""The matches of a batch, by token and by feature: the two orders in which a training step reads them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """m matches between n tokens and d_sae features, sorted by token and within a token by feature.

    The properties are computed at their first use.

    >>> matches = Matches(torch.tensor([1, 3, 4]), torch.tensor([0.5, 2.0, 1.0]), n=2, d_sae=3)
    >>> matches.token.tolist(), matches.feature.tolist(), matches.counts.tolist()
    ([0, 1, 1], [1, 0, 1], [1, 2, 0])
    """

    positions: Tensor  # ascending positions in the flattened [n, d_sae], int64 [m]
    values: Tensor  # activations of the features, float32 [m]
    n: int
    d_sae: int

    @cached_property
    def token(self) -> Tensor:
        """Token of each match, int64 [m]."""
        return self.positions // self.d_sae

    @cached_property
    def feature(self) -> Tensor:
        """Feature of each match, int64 [m]."""
        return self.positions - self.token * self.d_sae

    @cached_property
    def token_begin(self) -> Tensor:
        """The index of the first match of each token, and the number of matches: int64 [n + 1]."""
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
        """The index of the first match of each feature in the order `by_feature`: int64 [d_sae]."""
        return self.counts.cumsum(0) - self.counts
