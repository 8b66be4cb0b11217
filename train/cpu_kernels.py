"""What a training step does with its matches on a CPU, by torch's own sparse and bag kernels.

`triton_kernels` has the same functions for CUDA. Measured alternatives stand in docs/log.md.
"""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_runtime.train.matches import Matches


def reconstruct(found: Matches, rows: Tensor) -> Tensor:
    """The sum over each token's matches of value times row[feature]: [d_sae, d_in] to [n, d_in]."""
    return embedding_bag(found.feature, rows, found.token_begin[:-1], mode="sum", per_sample_weights=found.values)


def dots(rows: Tensor, columns: Tensor, found: Matches) -> Tensor:
    """rows[token] . columns[feature] for every match: [n, d_in] and [d_sae, d_in] to [m]."""
    shape = (len(rows), len(columns))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        where = torch.sparse_csr_tensor(
            found.token_begin, found.feature, rows.new_ones(len(found.at)), shape, check_invariants=False
        )
    products: Tensor = torch.sparse.sampled_addmm(where, rows, columns.T, beta=0.0).values()
    return products


def sums_by_feature(rows: Tensor, weights: Tensor, found: Matches) -> Tensor:
    """The sum over each feature's matches of weight times row[token]: [n, d_in] and [m] to [d_sae, d_in]."""
    token, weights = found.token[found.by_feature], weights[found.by_feature]
    return embedding_bag(token, rows, found.feature_begin, mode="sum", per_sample_weights=weights)
