"""Turn a bundle into standard ONNX graphs over its own weights, with onnx-ir."""

from sae_runtime.extras import require

require("export")

from sae_runtime.exports.export import export  # noqa: E402  (onnx only after the check)

__all__ = ["export"]
