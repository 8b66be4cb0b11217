"""The sparse products of a training step on a CPU, by torch's own sparse and bag kernels.

`triton_kernels` has the same functions for CUDA. docs/log.md lists alternatives and their times.
"""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_runtime.train.step.matches import Matches


def reconstruct(matches: Matches, rows: Tensor) -> Tensor:
    """The sum over each token's matches of value times row[feature]: [d_sae, d_in] to [n, d_in].

    >>> matches = Matches(torch.tensor([1, 2]), torch.tensor([2.0, 3.0]), n=2, d_sae=2)  # (0, 1) and (1, 0)
    >>> reconstruct(matches, torch.tensor([[1.0], [10.0]])).tolist()
    [[20.0], [3.0]]
    """
    return embedding_bag(matches.feature, rows, matches.token_begin[:-1], mode="sum", per_sample_weights=matches.values)


def dots(rows: Tensor, columns: Tensor, matches: Matches) -> Tensor:
    """rows[token] . columns[feature] for every match: [n, d_in] and [d_sae, d_in] to [m].

    >>> matches = Matches(torch.tensor([1, 2]), torch.tensor([2.0, 3.0]), n=2, d_sae=2)
    >>> dots(torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [7.0]]), matches).tolist()
    [7.0, 10.0]
    """
    shape = (len(rows), len(columns))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        where = torch.sparse_csr_tensor(
            matches.token_begin, matches.feature, rows.new_ones(len(matches.positions)), shape, check_invariants=False
        )
    products: Tensor = torch.sparse.sampled_addmm(where, rows, columns.T, beta=0.0).values()
    return products


def sums_by_feature(rows: Tensor, weights: Tensor, matches: Matches) -> Tensor:
    """The sum over each feature's matches of weight times row[token]: [n, d_in] and [m] to [d_sae, d_in].

    >>> matches = Matches(torch.tensor([1, 2]), torch.tensor([2.0, 3.0]), n=2, d_sae=2)
    >>> sums_by_feature(torch.tensor([[1.0], [2.0]]), matches.values, matches).tolist()
    [[6.0], [2.0]]
    """
    token, weights = matches.token[matches.by_feature], weights[matches.by_feature]
    return embedding_bag(token, rows, matches.feature_begin, mode="sum", per_sample_weights=weights)
