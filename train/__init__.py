"""Harvest activations and fit sparse autoencoders on them, with torch."""

from sae_runtime.extras import require

require("train")

from sae_runtime.train.config import TrainConfig  # noqa: E402  (torch only after the check)
from sae_runtime.train.fit import fit  # noqa: E402

__all__ = ["TrainConfig", "fit"]
