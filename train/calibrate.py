"""Thresholds under which every token is decided for itself, fitted so that the mean L0 is k (our design)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import quota
from sae_runtime.train.model import SparseAutoencoder

_BLOCK_ELEMENTS = 1 << 25  # of latents [n, block of features]


@torch.no_grad()
def calibrate(
    model: SparseAutoencoder, x: Tensor, k: float, cap: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Threshold of each feature, float32 [d_sae], finite and >= 0; served features are those with z > threshold.

    Mutual choice gets one common threshold. Under feature choice a feature's threshold is the larger of its own
    quantile, above which it fires on a share cap of the tokens, and one common cut; but it is no larger than lets the
    feature fire on a thirtieth of its cap, so that features of small values are not silenced by the common cut. The
    common cut is what brings the mean L0 on x to k. Every cut lies midway between neighbouring activations.

    Args:
        model: the fitted model.
        x: calibration activations, scaled as the model expects, [n, d_in].
        k: wanted mean L0.
        cap: largest share of the tokens of each feature, float64 [d_sae], for feature choice.
    """
    n, d_sae = len(x), len(model.b_enc)
    own, top = torch.zeros(d_sae, dtype=torch.float64), torch.full((d_sae,), torch.inf, dtype=torch.float64)
    wanted, always = max(quota.budget(k, n), 1), 0
    pool = torch.empty(0)  # the largest between own and top: the common cut lies among them
    for begin in range(0, d_sae, max(_BLOCK_ELEMENTS // n, 1)):
        block = slice(begin, begin + max(_BLOCK_ELEMENTS // n, 1))
        z = torch.relu((x - model.b_dec) @ model.W_enc[block].T + model.b_enc[block])
        if cap is not None:
            limit, least = (torch.from_numpy(quota.tokens_per_feature(c[block], n)) for c in (cap, cap * quota.LEAST))
            own[block] = _quantiles(z, limit.to(z.device))
            top[block] = _quantiles(z, least.to(z.device)).where(least > 0, torch.inf)
            above = z > top[block].to(z.device)
            always += int(above.sum())
            z = torch.where((z > own[block].to(z.device)) & ~above, z, 0)
        values = z[z > 0]
        pool = torch.cat([pool.to(values.device), values])
        if len(pool) > wanted + 1:
            pool = pool.topk(wanted + 1, sorted=False).values
    wanted = max(wanted - always, 1)
    # With fewer positive values than the budget, all are served.
    common = float(pool.topk(wanted + 1).values[-2:].double().mean()) if len(pool) > wanted else 0.0
    return torch.minimum(torch.clamp_min(own, common), top).float().numpy()


def _quantiles(z: Tensor, limit: Tensor) -> Tensor:
    """Midway between the limit-th and the next largest value of every column; 0 where there is no next."""
    depth = min(int(limit.max()) + 1, len(z))
    falling = z.topk(depth, dim=0).values.double()
    falling = torch.cat([falling, falling.new_zeros(1, z.shape[1])])  # what follows the smallest
    kept = falling.gather(0, (limit - 1).clamp_min(0)[None])[0]
    beyond = falling.gather(0, limit.clamp_max(depth)[None])[0]
    # A feature without a token of its own is cut above its largest value.
    return torch.where(limit > 0, (kept + beyond) / 2, beyond).where(beyond > 0, 0).cpu()
