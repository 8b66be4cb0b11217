"""Turn a bundle into standard ONNX graphs over its own weights, with onnx-ir."""

from sae_runtime.extras import require

require("export")
