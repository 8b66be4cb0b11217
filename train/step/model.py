"""The autoencoder in training, and the product by which every SAE in torch encodes."""

import torch
from torch import Tensor, nn


def encoded(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor) -> Tensor:
    """Pre-activations z = relu((x - b_pre) W_enc^T + b_enc), [n, d_sae].

    Args:
        x: activations, normalised if the SAE does so, [n, d_in].
        W_enc: a row for each feature, [d_sae, d_in].
        b_enc: [d_sae].
        b_pre: the centre of the activations, [d_in].

    >>> encoded(torch.ones(1, 2), torch.eye(2), torch.tensor([0.5, -3.0]), torch.zeros(2))
    tensor([[1.5000, 0.0000]])
    """
    return torch.relu((x - b_pre) @ W_enc.T + b_enc)


class SparseAutoencoder(nn.Module):
    """z = relu((x - b_dec) W_enc^T + b_enc), f = S * z for a mask S of matches, x_hat = f W_dec + b_dec.

    W_enc and W_dec are both [d_sae, d_in] here, a row for each feature. The rows of W_dec have unit norm. So the
    activation of a feature is the length of the vector that it adds, and features can be compared by their activations.

    >>> model = SparseAutoencoder(5, torch.ones(3), generator=torch.Generator().manual_seed(0))
    >>> model.pre_activations(torch.ones(2, 3)).tolist()  # x is the centre
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
        return encoded(x, self.W_enc, self.b_enc, self.b_dec)

    def reconstruction(self, sums: Tensor, x: Tensor | None = None) -> Tensor:
        """The reconstruction [n, d_in] from sums of decoder rows f W_dec [n, d_in]. It does not depend on x."""
        return sums + self.b_dec

    def decode(self, f: Tensor) -> Tensor:
        """The reconstruction [n, d_in] from activations of features f [n, d_sae]."""
        return self.reconstruction(f @ self.W_dec)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring the rows of W_dec back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
