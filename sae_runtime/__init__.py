"""Read and steer the features of sparse autoencoders with onnxruntime, without torch."""

from sae_runtime.activations.stored import Activations, open_activations
from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features
from sae_runtime.sae import SAE, load

__all__ = ["SAE", "Activations", "BundleError", "Edit", "Features", "Manifest", "load", "open_activations"]
