"""Whether the first tokens that vLLM reads look as the bundle's figures say, so that a wrong hook is seen."""

from typing import Any

import torch
from torch import Tensor

from sae_runtime.train.measure.torch_sae import TorchSAE

_TOKENS = 512


class FirstTokens:
    """L0 and explained variance of the first tokens at a hook.

    Args:
        sae: that is served there.
    """

    def __init__(self, sae: TorchSAE) -> None:
        self._sae, self._rows, self._tokens = sae, list[Tensor](), 0
        self._told: dict[str, Any] = {"tokens": None}

    @property
    def full(self) -> bool:
        """Whether enough tokens were seen."""
        return self._tokens >= _TOKENS

    def add(self, x: Tensor) -> None:
        """See activations [n, d_in]."""
        if not self.full:
            self._rows.append(x[: _TOKENS - self._tokens].float())
            self._tokens += len(self._rows[-1])

    def figures(self) -> dict[str, Any]:
        """Tokens, L0 and explained variance, beside the bundle's own figures; None where there are none."""
        if self._told["tokens"] != self._tokens:  # a large SAE takes half a second, and readers ask with each batch
            self._told = self._measured()
        return self._told

    def _measured(self) -> dict[str, Any]:
        manifest = self._sae.manifest
        measured = {"l0": manifest.measured.get("l0"), "fvu": manifest.measured.get("fvu")}
        told: dict[str, Any] = {"d_sae": manifest.architecture.d_sae, "tokens": self._tokens, "bundle": measured}
        if not self._rows:
            return told | {"l0": None, "fvu": None}
        x = torch.cat(self._rows)
        f = self._sae.features(x)
        told["l0"] = float((f > 0).sum() / len(x))
        if manifest.architecture.d_out is not None:
            return told | {"fvu": None}
        spread = (x - x.mean(dim=0)).square().sum()
        return told | {"fvu": float((x - self._sae.decode(f, x)).square().sum() / spread) if spread > 0 else None}
