import numpy as np
import pytest
import torch

from sae_runtime.exports import witness
from sae_runtime.train.evaluate import batch_rule, fvu_and_l0, matches, served_rule
from sae_runtime.train.model import SparseAutoencoder


@pytest.mark.parametrize("batch", [7, 40, 1000])
def test_agrees_with_numpy(batch: int) -> None:
    model = SparseAutoencoder(30, torch.full((8,), 0.5), generator=torch.Generator().manual_seed(0))
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(1)) + 3
    rows = x.double().numpy()
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    z = np.maximum((rows - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"], 0)
    theta = np.full(30, 1.0, np.float32)
    batches = [witness.joint(z[begin : begin + batch], 2.5).kept for begin in range(0, 100, batch)]
    for rule, kept in (
        (served_rule(3, None), witness.token_choice(z, 3).kept),
        (served_rule(3, theta), z > 1.0),
        (batch_rule(2.5, None), np.concatenate(batches)),
    ):
        fvu, l0 = fvu_and_l0(model, x, rule, batch)
        error = rows - ((z * kept) @ weights["W_dec"] + weights["b_dec"])
        assert fvu == pytest.approx((error**2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-5)
        assert (l0 == kept.sum(axis=1)).all()
        assert (matches(model, x, rule, batch) == kept.sum(axis=0)).all()
