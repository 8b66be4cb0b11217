"""Whether the first tokens that vLLM reads look as the bundle's figures say, so that a wrong hook is seen."""

import logging
from typing import Any

import torch
from torch import Tensor

from sae_runtime.activations.left_out import limit, norms, rule_for
from sae_runtime.train.measure.torch_sae import TorchSAE

_TOKENS = 512
_LOG = logging.getLogger("vllm.sae_runtime")  # vLLM shows what its own names say


class FirstTokens:
    """L0 and FVU of the first tokens at a hook.

    Args:
        sae: that is served there.
        name: of the SAE, for a warning.
    """

    def __init__(self, sae: TorchSAE, name: str) -> None:
        self._sae, self._name, self._rows, self._tokens = sae, name, list[Tensor](), 0
        self._told: dict[str, Any] = {"tokens": None}

    @property
    def full(self) -> bool:
        """Whether enough tokens were seen."""
        return self._tokens >= _TOKENS

    def add(self, x: Tensor) -> None:
        """See activations [n, d_in]."""
        if not self.full:
            self._rows.append(x[: _TOKENS - self._tokens].float().clone())  # what follows computes in place
            self._tokens += len(self._rows[-1])
            if self.full:
                self._warn()

    def _warn(self) -> None:
        told = self.figures()
        fvu, measured = told["fvu"], told["bundle"]["fvu"]
        if fvu is not None and measured is not None and 1 - fvu < (1 - measured) / 2:
            _LOG.warning(
                "SAE %s explains %.2f of the variance of its first %d tokens, and its bundle says %.2f; look whether "
                "model and hook are those that it was trained at",
                *(self._name, 1 - fvu, self._tokens, 1 - measured),
            )

    def figures(self) -> dict[str, Any]:
        """Tokens, L0 and FVU, beside the bundle's own figures; None where there are none.

        Rows of massive norm, which the bundle's figures leave out, are left out here.
        """
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
        sizes = norms(x.cpu().numpy())
        x = x[torch.from_numpy(sizes <= limit(sizes, rule_for(manifest))).to(x.device)]
        f = self._sae.features(x)
        told["l0"] = float((f > 0).sum() / len(x))
        if manifest.architecture.d_out is not None:
            return told | {"fvu": None}
        spread = (x - x.mean(dim=0)).square().sum()
        return told | {"fvu": float((x - self._sae.decode(f, x)).square().sum() / spread) if spread > 0 else None}
