"""The autoencoder while it trains."""

import torch
from torch import Tensor, nn


class SparseAutoencoder(nn.Module):
    """z = relu((x - b_dec) W_enc^T + b_enc), f = S * z for a mask S of matches, x_hat = f W_dec + b_dec.

    W_enc and W_dec are both [d_sae, d_in] here, a row for each feature. The rows of W_dec have unit norm, so that a
    feature's value is what it contributes, and values of different features compare.
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

    def latents(self, x: Tensor) -> Tensor:
        """Activations [n, d_in] to latents z >= 0 [n, d_sae]."""
        return torch.relu((x - self.b_dec) @ self.W_enc.T + self.b_enc)

    def decode(self, f: Tensor) -> Tensor:
        """Features [n, d_sae] to activations [n, d_in]."""
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
