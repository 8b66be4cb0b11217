"""Harvest activations and fit sparse autoencoders on them, with torch."""

import os

from sae_runtime.extras import require

require("train")

# Huge pages for large tensors: a tenth of a training step on Linux (docs/log.md); torch looks once, when it allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from sae_runtime.train.attach import attach  # noqa: E402  (torch only after the check)
from sae_runtime.train.config import TrainConfig  # noqa: E402
from sae_runtime.train.fit import fit, fit_many  # noqa: E402

__all__ = ["TrainConfig", "attach", "fit", "fit_many"]
