"""SAEs inside the graph of a host model: where a hook lies, what is inserted, where the files go.

May import `exports.graphs` and, of the runtime, `core`, `bundle` and `engine.sessions`.
"""

from sae_runtime.exports.splice.splicing import Splice, splice

__all__ = ["Splice", "splice"]
