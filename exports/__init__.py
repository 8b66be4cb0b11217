"""Turn a bundle into standard ONNX graphs that read its weights, and put SAEs into host models' graphs, with onnx-ir.

May import, of the runtime, `bundle` and `engine.sessions`.
"""

from sae_runtime.bundle.extras import require

require("export")

from sae_runtime.exports.export import export  # noqa: E402  (onnx only after the check)
from sae_runtime.exports.export_model import export_model  # noqa: E402
from sae_runtime.exports.splice.splicing import Splice, splice  # noqa: E402

__all__ = ["Splice", "export", "export_model", "splice"]
