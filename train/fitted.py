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
    """An SAE out of a bundle, for raw activations, with its rules; without a budget for batches only the served one."""

    path: Path
    manifest: Manifest
    model: SparseAutoencoder
    served: Rule
    batch: Rule | None


def open_fitted(path: Path, device: torch.device) -> Fitted:
    """Read a bundle, exported or not, into the torch model.

    Raises:
        BundleError: the folder is no valid bundle.
        ValueError: the SAE is a transcoder, or one of another form than ours.
    """
    read = bundle.read(path)
    weights = {name: torch.tensor(read.tensor(name)) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    encoder, allocation = read.manifest.encoder, read.manifest.allocation
    if encoder.d_out is not None or encoder.decodes_with_x or encoder.selection == "groupmax":
        raise ValueError(
            f"{path} is a transcoder, normalises, has a skip or selects by groups, which only the runtime computes; "
            "use extract or steer"
        )
    if not encoder.pre_bias:
        moved = weights["b_dec"].double() @ weights["W_enc"].double()
        weights["b_enc"] = (weights["b_enc"].double() + moved).float()
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    model = SparseAutoencoder(encoder.d_sae, weights["b_dec"], generator=torch.Generator())
    model.load_state_dict(weights)
    model = model.to(device)
    if encoder.k is not None:
        return Fitted(Path(path), read.manifest, model, served_rule(encoder.k, None), None)
    served = served_rule(encoder.d_sae, np.array(read.tensor("threshold")))
    if allocation is None:
        return Fitted(Path(path), read.manifest, model, served, None)
    cap = None if allocation.quota is None else quota.caps(allocation.quota, allocation.k, encoder.d_sae)
    return Fitted(Path(path), read.manifest, model, served, batch_rule(allocation.k, cap))
