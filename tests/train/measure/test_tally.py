import numpy as np
import pytest
import torch

from sae_runtime.exports import witness
from sae_runtime.train.measure.rules import batch_rule, group_rule, served_rule
from sae_runtime.train.measure.tally import tally, tally_of
from sae_runtime.train.step.model import SparseAutoencoder


@pytest.mark.parametrize("batch", [7, 40, 1000])
def test_a_tally_agrees_with_numpy(batch: int) -> None:
    model = SparseAutoencoder(30, torch.full((8,), 0.5), generator=torch.Generator().manual_seed(0))
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(1)) + 3
    rows = x.double().numpy()
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    z = np.maximum((rows - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"], 0)
    threshold = np.full(30, 1.0, np.float32)
    batches = [witness.joint(z[begin : begin + batch], 2.5).kept for begin in range(0, 100, batch)]
    for rule, kept in (
        (served_rule(3, None), witness.token_choice(z, 3).kept),
        (served_rule(3, threshold), z > 1.0),
        (group_rule(5), witness.group_choice(z, 5).kept),
        (batch_rule(2.5, None), np.concatenate(batches)),
    ):
        found = tally_of(model, x, rule, batch)
        error = rows - ((z * kept) @ weights["W_dec"] + weights["b_dec"])
        assert found.fvu == pytest.approx((error**2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-5)
        assert (found.l0 == kept.sum(axis=1)).all()
        assert (found.matches == kept.sum(axis=0)).all()


def test_a_tally_without_targets_counts_matches_and_has_no_fvu() -> None:
    model = SparseAutoencoder(30, torch.zeros(8), generator=torch.Generator().manual_seed(0))
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
    found = tally(model, [(x[:60], None), (x[60:], None)], served_rule(3, None))
    assert np.isnan(found.fvu) and (found.l0 == 3).all() and found.matches.sum() == 300
