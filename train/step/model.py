"""The autoencoder while it trains."""

import torch
from torch import Tensor, nn


class SparseAutoencoder(nn.Module):
    """z = relu((x - b_dec) W_enc^T + b_enc), f = S * z for a mask S of matches, x_hat = f W_dec + b_dec.

    W_enc and W_dec are both [d_sae, d_in] here, a row for each feature. The rows of W_dec have unit norm, so that the
    value of a feature is the length of what it adds, and values of different features compare.

    >>> model = SparseAutoencoder(5, torch.ones(3), generator=torch.Generator().manual_seed(0))
    >>> model.pre_activations(torch.ones(2, 3)).tolist()  # x lies at the centre
    [[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, d_sae: int, centre: Tensor, *, generator: torch.Generator) -> None:
        """Start with random directions and b_dec at the centre of the data, [d_in]."""
        super().__init__()
        rows = torch.randn(d_sae, len(centre), generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(centre.clone())

    def pre_activations(self, x: Tensor) -> Tensor:
        """Pre-activations z >= 0 [n, d_sae] of activations [n, d_in]."""
        return torch.relu((x - self.b_dec) @ self.W_enc.T + self.b_enc)

    def reconstruction(self, sums: Tensor, x: Tensor) -> Tensor:
        """The reconstruction [n, d_in] from sums of decoder rows f W_dec [n, d_in]; x is not needed here."""
        return sums + self.b_dec

    def decode(self, f: Tensor) -> Tensor:
        """Activations [n, d_in] that activations of features [n, d_sae] stand for."""
        return f @ self.W_dec + self.b_dec

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from W_dec's gradient the part that would only change the norm of a row."""
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring the rows of W_dec back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
