"""SAEs inside the graph of a host model: the tensor of a hook, the inserted graph, the files.

May import `exports.graphs` and, of the runtime, `bundle`, `engine.sessions` and `engine.trial`.
"""

from sae_runtime.exports.splice.splicing import Splice, splice

__all__ = ["Splice", "splice"]
