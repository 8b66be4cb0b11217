"""Read and steer the features of sparse autoencoders with onnxruntime, without torch.

A name is imported when it is first asked for, so that the command line shows its help without numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_runtime.activations.stored import Activations, open_activations
    from sae_runtime.bundle.folder import BundleError
    from sae_runtime.bundle.manifest import Manifest
    from sae_runtime.core.edits import Edit
    from sae_runtime.core.features import Features
    from sae_runtime.extraction.stored_features import StoredFeatures, read_features
    from sae_runtime.model import Model, load_model
    from sae_runtime.sae import SAE, load
    from sae_runtime.store.build_store import build_store
    from sae_runtime.store.open_store import Store, open_store

__all__ = [
    "SAE",
    "Activations",
    "BundleError",
    "Edit",
    "Features",
    "Manifest",
    "Model",
    "Store",
    "StoredFeatures",
    "build_store",
    "load",
    "load_model",
    "open_activations",
    "open_store",
    "read_features",
]

_MODULES = {
    "SAE": "sae",
    "load": "sae",
    "Model": "model",
    "load_model": "model",
    "Activations": "activations.stored",
    "open_activations": "activations.stored",
    "StoredFeatures": "extraction.stored_features",
    "read_features": "extraction.stored_features",
    "BundleError": "bundle.folder",
    "Manifest": "bundle.manifest",
    "Edit": "core.edits",
    "Features": "core.features",
    "Store": "store.open_store",
    "build_store": "store.build_store",
    "open_store": "store.open_store",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
