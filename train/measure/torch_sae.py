"""The SAE of a bundle as a torch module, for every architecture that a manifest can describe."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.hub import local
from sae_runtime.bundle.normalise import LAYER_EPSILON, TINY
from sae_runtime.train.measure.rules import Rule, batch_rule, group_rule, served_rule
from sae_runtime.train.step.model import encoded


class TorchSAE(nn.Module):
    """The SAE of a bundle, for raw activations; `manifest.architecture` says what it computes.

    Its weights are buffers with the bundle's names and shapes, so gradients flow to the activations and not to the
    weights.

    Attributes:
        path: the bundle's folder.
        manifest: the bundle's manifest.
        served: the served rule.
        batch: the batch rule; None if the bundle has none.
        largest: the largest measured activation of each feature, [d_sae]; None if the bundle has no stats.

    >>> sae = open_sae(bundle_path)
    >>> sae(torch.zeros(2, 24)).shape
    torch.Size([2, 24])
    """

    W_enc: Tensor  # [d_in, d_sae]
    W_dec: Tensor  # [d_sae, d_out]
    b_enc: Tensor
    b_dec: Tensor
    b_pre: Tensor  # b_dec or zeros, [d_in]
    threshold: Tensor  # [d_sae], where thresholds select

    def __init__(self, read: Bundle) -> None:
        """Copy the weights of a bundle, and its threshold if its architecture has one."""
        super().__init__()
        self.path, self.manifest = read.path, read.manifest
        stats = read.stats()
        self.largest = None if stats is None else stats.largest
        architecture, allocation = read.manifest.architecture, read.manifest.allocation
        for name, array in read.weights().items():
            # W_enc is stored by rows of features, as in training, so that both products have equal bits.
            tensor = torch.tensor(array.T).contiguous().T if name == "W_enc" else torch.tensor(array)
            self.register_buffer(name, tensor)
        if architecture.selection == "groupmax":
            self.served: Rule = group_rule(architecture.k or 0)
        else:
            threshold = None if architecture.k is not None else np.array(read.tensor("threshold"))
            self.served = served_rule(architecture.k or architecture.d_sae, threshold)
        self.batch: Rule | None = None
        if allocation is not None and architecture.selection == "threshold":
            law, k, d_sae = allocation.quota, allocation.k, architecture.d_sae
            self.batch = batch_rule(k, None if law is None else quota.max_densities(law, k, d_sae))

    def refuse_transcoder(self) -> None:
        """Raise ValueError if this is a transcoder, whose features cannot replace or edit the activations it reads."""
        if self.manifest.architecture.d_out is not None:
            raise ValueError(
                f"{self.path} is a transcoder: its features reconstruct another activation than it reads, and can "
                "neither replace nor edit that one; give an SAE that reconstructs its input"
            )

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Normalise tokens as `bundle.normalise` does.

        Each token is first divided by its mean magnitude, so that the squares of large and of small numbers are finite
        and above 0.

        Returns:
            x' [n, d_in], and the mean and the size of each token [n, 1]. None stands for a mean of 0 and a size of 1.
        """
        architecture = self.manifest.architecture
        if architecture.norm == "none":
            return x, None, None
        unit = (x / architecture.d_in).abs().sum(dim=1, keepdim=True)
        y = x / torch.where(unit > 0, unit, 1)
        if architecture.norm == "length":
            size = y.norm(dim=1, keepdim=True) * architecture.d_in**-0.5
            return y / size.clamp_min(TINY), None, size * unit
        mean = y.mean(dim=1, keepdim=True)
        y = y - mean
        size = y.norm(dim=1, keepdim=True) * (architecture.d_in - 1) ** -0.5
        return y / (size + LAYER_EPSILON / unit.clamp_min(TINY)), mean * unit, size * unit

    def pre_activations(self, x: Tensor) -> Tensor:
        """Pre-activations z >= 0 [n, d_sae] of raw activations [n, d_in]."""
        return encoded(self.normalised(x)[0], self.W_enc.T, self.b_enc, self.b_pre)

    def features(self, x: Tensor) -> Tensor:
        """Activations of the features [n, d_sae] of raw activations [n, d_in], by the served rule."""
        z = self.pre_activations(x)
        if self.manifest.architecture.selection == "threshold":  # the buffer is on z's device, and the rule's is not
            return torch.where(z > self.threshold, z, 0)
        return torch.where(self.served(z), z, 0)

    def some_features(self, x: Tensor, features: Tensor) -> Tensor:
        """Activations of some features [n, e], by their numbers [e], of raw activations [n, d_in].

        Thresholds select each feature for itself, so no other is computed.

        >>> sae = open_sae(bundle_path)
        >>> sae.some_features(torch.zeros(2, 24), torch.tensor([5, 3])).shape
        torch.Size([2, 2])
        """
        if self.manifest.architecture.selection != "threshold":
            return self.features(x)[:, features]
        z = encoded(self.normalised(x)[0], self.W_enc.T[features], self.b_enc[features], self.b_pre)
        return torch.where(z > self.threshold[features], z, 0)

    def reconstruction(self, sums: Tensor, x: Tensor) -> Tensor:
        """The reconstruction [n, d_out] from sums of decoder rows f W_dec [n, d_out], and from the x that f encodes."""
        _, mean, size = self.normalised(x)
        y = sums + self.b_dec
        y = y if size is None else y * size
        y = y if mean is None else y + mean
        return y + x @ self.get_buffer("W_skip").T if self.manifest.architecture.skip else y

    def decode(self, f: Tensor, x: Tensor) -> Tensor:
        """The reconstruction [n, d_out] of x [n, d_in] from activations of features [n, d_sae]."""
        return self.reconstruction(f @ self.W_dec, x)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction [n, d_out] of x [n, d_in] by the served rule."""
        return self.decode(self.features(x), x)


def edited(old: Tensor, scale: Tensor, shift: Tensor, low: Tensor, high: Tensor, only_active: Tensor) -> Tensor:
    """Activations of features after edits, f' = clip(scale f + shift, low, high); all of one shape or broadcast.

    Args:
        old: the activations f before.
        scale: as are shift, low and high, numbers of the edits.
        shift: is added.
        low: the least that f' may be.
        high: the most.
        only_active: bool; where f is 0, it stays.

    >>> edited(torch.tensor([0.0, 2.0]), *(torch.tensor(n) for n in (2.0, 1.0, 0.0, 4.0, True))).tolist()
    [0.0, 4.0]
    """
    new = torch.minimum(torch.maximum(scale * old + shift, low), high)
    return torch.where(only_active & (old <= 0), old, new)


def open_sae(path: str | Path, device: torch.device | str = "cpu") -> TorchSAE:
    """Read a bundle, exported or not, into a torch module on a device.

    Args:
        path: the folder, the name of a ready SAE, or an `hf://` reference.
        device: of the module.

    Raises:
        BundleError: the folder is no bundle, or is damaged.
        FileNotFoundError: it does not exist.

    >>> open_sae(bundle_path).batch is not None
    True
    """
    return TorchSAE(bundle.read(local(path))).to(device)
