"""Read and steer the features of sparse autoencoders with onnxruntime, without torch."""

from sae_runtime.activations import Activations, open_activations
from sae_runtime.bundle import BundleError
from sae_runtime.edits import Edit
from sae_runtime.features import Features
from sae_runtime.manifest import Manifest
from sae_runtime.sae import SAE, load

__all__ = ["SAE", "Activations", "BundleError", "Edit", "Features", "Manifest", "load", "open_activations"]
