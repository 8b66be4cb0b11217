"""Harvest activations and fit sparse autoencoders on them, with torch.

Importing this package imports no torch: a function that needs torch is imported when it is first asked for. The package
imports the runtime (`sae_runtime`) and never `sae_runtime.exports`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sae_runtime.extras import require
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.evaluate_config import EvaluateConfig
from sae_runtime.train.harvest_config import HarvestConfig

if TYPE_CHECKING:
    from sae_runtime.train.attach import attach
    from sae_runtime.train.evaluation import evaluate
    from sae_runtime.train.fit import fit, fit_many
    from sae_runtime.train.harvest import harvest

__all__ = ["EvaluateConfig", "HarvestConfig", "TrainConfig", "attach", "evaluate", "fit", "fit_many", "harvest"]

_WITH_TORCH = {
    "attach": "attach",
    "evaluate": "evaluation",
    "fit": "fit",
    "fit_many": "fit",
    "harvest": "harvest",
}


class _Lazy(ModuleType):
    """A package that imports a public name when it is first asked for.

    Some functions have the name of their module. The import system binds every submodule to its name in the package,
    and would hide such a function. `__setattr__` keeps the name for the function, so PEP 562 alone is not enough.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _WITH_TORCH:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        require("train")
        value = getattr(importlib.import_module(f"{self.__name__}.{_WITH_TORCH[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WITH_TORCH and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Lazy
