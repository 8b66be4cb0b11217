"""An SAE out of a bundle, of any form that a manifest knows, in torch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.normalise import LAYER_EPSILON, TINY
from sae_runtime.train.measure.tally import Rule, batch_rule, group_rule, served_rule


class TorchSAE(nn.Module):
    """The SAE of a bundle, for raw activations; `manifest.architecture` says what it computes.

    Its weights are buffers of the bundle's names and shapes: gradients flow through it to activations, and nothing
    trains it. `batch` is the rule that gives out matches over many tokens, None where the bundle does not have one.

    >>> sae = open_sae(bundle_path)
    >>> sae(torch.zeros(2, 24)).shape
    torch.Size([2, 24])
    """

    W_enc: Tensor  # [d_in, d_sae]
    W_dec: Tensor  # [d_sae, d_out]
    b_enc: Tensor
    b_dec: Tensor
    b_pre: Tensor  # b_dec or zeros, [d_in]

    def __init__(self, read: Bundle) -> None:
        """Take the weights of a bundle that has a threshold if it needs one."""
        super().__init__()
        self.path, self.manifest = read.path, read.manifest
        architecture, allocation = read.manifest.architecture, read.manifest.allocation
        for name, array in read.weights().items():
            # W_enc lies by rows of features: the product with it is the one of training, to the last bit.
            tensor = torch.tensor(array.T).contiguous().T if name == "W_enc" else torch.tensor(array)
            self.register_buffer(name, tensor)
        if architecture.selection == "groupmax":
            self.served: Rule = group_rule(architecture.k or 0)
        else:
            threshold = None if architecture.k is not None else np.array(read.tensor("threshold"))
            self.served = served_rule(architecture.k or architecture.d_sae, threshold)
        self.batch: Rule | None = None
        if allocation is not None and architecture.selection == "threshold":
            max_densities = (
                None
                if allocation.quota is None
                else quota.max_densities(allocation.quota, allocation.k, architecture.d_sae)
            )
            self.batch = batch_rule(allocation.k, max_densities)

    def refuse_transcoder(self) -> None:
        """Raise ValueError where the features cannot replace or edit the activations that they are read from."""
        if self.manifest.architecture.d_out is not None:
            raise ValueError(
                f"{self.path} is a transcoder: its features make another activation than they are read from, and can "
                "neither replace nor edit that"
            )

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x' [n, d_in] of x, and each token's mean and size [n, 1]: as `bundle.normalise`; None for 0 and 1.

        Tokens are first divided by the mean of their magnitudes, so that squares of large and of small numbers are
        finite and above 0.
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
        return torch.relu((self.normalised(x)[0] - self.b_pre) @ self.W_enc + self.b_enc)

    def features(self, x: Tensor) -> Tensor:
        """Activations of the features [n, d_sae] of raw activations [n, d_in], by the served rule."""
        z = self.pre_activations(x)
        return torch.where(self.served(z), z, 0)

    def reconstruction(self, sums: Tensor, x: Tensor) -> Tensor:
        """The reconstruction [n, d_out] from sums of decoder rows f W_dec [n, d_out], with all that x adds to it."""
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


def open_sae(path: str | Path, device: torch.device | str = "cpu") -> TorchSAE:
    """Read a bundle, exported or not, into a torch module.

    Raises:
        BundleError: the folder cannot be trusted to be a bundle.

    >>> open_sae(bundle_path).batch is not None
    True
    """
    return TorchSAE(bundle.read(Path(path))).to(device)
