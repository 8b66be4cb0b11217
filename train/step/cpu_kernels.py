"""The sparse products of a training step on a CPU, by torch's own sparse and bag kernels.

`triton_kernels` has the same functions for CUDA. docs/log.md lists the alternatives that were measured.
"""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_runtime.train.step.matches import Matches


def reconstruct(matches: Matches, rows: Tensor) -> Tensor:
    """The sum over each token's matches of value times row[feature]: [d_sae, d_in] to [n, d_in]."""
    return embedding_bag(matches.feature, rows, matches.token_begin[:-1], mode="sum", per_sample_weights=matches.values)


def dots(rows: Tensor, columns: Tensor, matches: Matches) -> Tensor:
    """rows[token] . columns[feature] for every match: [n, d_in] and [d_sae, d_in] to [m]."""
    shape = (len(rows), len(columns))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        where = torch.sparse_csr_tensor(
            matches.token_begin, matches.feature, rows.new_ones(len(matches.positions)), shape, check_invariants=False
        )
    products: Tensor = torch.sparse.sampled_addmm(where, rows, columns.T, beta=0.0).values()
    return products


def sums_by_feature(rows: Tensor, weights: Tensor, matches: Matches) -> Tensor:
    """The sum over each feature's matches of weight times row[token]: [n, d_in] and [m] to [d_sae, d_in]."""
    token, weights = matches.token[matches.by_feature], weights[matches.by_feature]
    return embedding_bag(token, rows, matches.feature_begin, mode="sum", per_sample_weights=weights)
