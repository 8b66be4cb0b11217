"""Builders for an export whose encode_exact.onnx has unusual limits."""

import functools
from collections.abc import Mapping

from sae_runtime.exports.certified.candidates import Limits
from sae_runtime.exports.certified.exact import exact_graph
from sae_runtime.exports.export import BUILDERS, Builder


def builders_with(limits: Limits) -> Mapping[str, Builder]:
    """The builders of `export`, with these limits for encode_exact.onnx."""
    return {**BUILDERS, "encode_exact.onnx": functools.partial(exact_graph, limits=limits)}
