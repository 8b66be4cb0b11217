from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_x

from sae_runtime import SAE, Features
from sae_runtime.bundle import BundleError
from sae_runtime.train.evaluate import Rule, reconstruct
from sae_runtime.train.fitted import open_fitted

CPU = torch.device("cpu")


def test_keeps_and_decodes_what_the_runtime_does(bundle_of: Callable[..., Path], sae: SAE, kind: str) -> None:
    fitted, x = open_fitted(bundle_of(kind), CPU), make_x(300)
    rules: list[tuple[Rule | None, Features]] = [
        (fitted.served, sae.encode(x)),
        (fitted.batch, sae.encode_batch(x)),
    ]
    assert (fitted.batch is None) == (kind == "token")
    for rule, features in rules:
        if rule is None:
            continue
        x_hat, kept = reconstruct(fitted.model, torch.from_numpy(x), rule)
        assert (kept.numpy() == (features.to_dense() > 0)).all()
        assert x_hat.numpy() == pytest.approx(sae.decode(features), abs=1e-4)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        open_fitted(tmp_path / "none", CPU)


def test_nothing_kept_gives_the_centre(bundle_of: Callable[..., Path]) -> None:
    model = open_fitted(bundle_of("mutual"), CPU).model
    x_hat, kept = reconstruct(model, torch.from_numpy(make_x(3)), lambda z: torch.zeros_like(z, dtype=torch.bool))
    assert not kept.any() and np.array_equal(x_hat.numpy(), model.b_dec.detach().expand(3, -1).numpy())
