"""Harvest activations and fit sparse autoencoders on them, with torch.

Importing this package imports no torch. A function that needs torch is imported at its first use. The package may
import these rooms of the runtime: `core`, `bundle`, `activations` and `calibration`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sae_runtime.bundle.extras import require
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.measure.config import EvaluateConfig

if TYPE_CHECKING:
    from sae_runtime.train.attaching import attach
    from sae_runtime.train.fitting import fit, fit_many
    from sae_runtime.train.measure.evaluation import evaluate

__all__ = ["EvaluateConfig", "HarvestConfig", "TrainConfig", "attach", "evaluate", "fit", "fit_many"]

_WITH_TORCH = {"attach": "attaching", "evaluate": "measure.evaluation", "fit": "fitting", "fit_many": "fitting"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("train")
    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
