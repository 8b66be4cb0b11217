"""An SAE out of a bundle, in torch again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_runtime import bundle, quota
from sae_runtime.manifest import Manifest
from sae_runtime.train.evaluate import Rule, batch_rule, served_rule
from sae_runtime.train.model import SparseAutoencoder


@dataclass(frozen=True)
class Fitted:
    """An SAE out of a bundle, for raw activations, with its rules; token choice has only the served one."""

    path: Path
    manifest: Manifest
    model: SparseAutoencoder
    served: Rule
    batch: Rule | None


def open_fitted(path: Path, device: torch.device) -> Fitted:
    """Read a bundle, exported or not, into the torch model.

    Raises:
        BundleError: the folder is no valid bundle.
    """
    read = bundle.read(path)
    weights = {name: torch.tensor(read.tensor(name)) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    encoder, allocation = read.manifest.encoder, read.manifest.allocation
    model = SparseAutoencoder(encoder.d_sae, weights["b_dec"], generator=torch.Generator())
    model.load_state_dict(weights)
    model = model.to(device)
    if encoder.selection == "topk":
        return Fitted(Path(path), read.manifest, model, served_rule(allocation.k, None), None)
    cap = None if allocation.quota is None else quota.caps(allocation.quota, allocation.k, encoder.d_sae)
    served = served_rule(allocation.k, np.array(read.tensor("threshold")))
    return Fitted(Path(path), read.manifest, model, served, batch_rule(allocation.k, cap))
