"""Activations of a transformers model on text: stored as shards, or computed while an SAE is fitted.

It may import `device`, `held_out`, `settings` and `source` at the root of `train`, and the rooms `core`, `bundle` and
`activations` of the runtime. Importing it imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sae_runtime.bundle.extras import require
from sae_runtime.train.harvest.config import HarvestConfig

if TYPE_CHECKING:
    from sae_runtime.train.harvest.harvesting import harvest, harvest_many

__all__ = ["HarvestConfig", "harvest", "harvest_many"]


def __getattr__(name: str) -> Any:
    if name not in ("harvest", "harvest_many"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("train")
    return getattr(importlib.import_module(f"{__name__}.harvesting"), name)
