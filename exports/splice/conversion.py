"""Bring a graph of an older opset to opset 18, the oldest that a splice can go into."""

from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from sae_runtime.exports.splice.shapes import infer_shapes

OLDEST_OPSET, OLDEST_IR = 18, 8


def converted(path: Path, proto: Any, opset: int) -> Any:
    """The graph in opset 18, with the names and metadata of its nodes.

    Args:
        path: its file, for messages.
        proto: the graph, without large weights.
        opset: its opset.

    Raises:
        ValueError: onnx cannot convert it.
    """
    kept = {node.output[0]: list(node.metadata_props) for node in proto.graph.node}
    own = _own_operators(proto, opset)
    try:
        made = version_converter.convert_version(infer_shapes(proto), OLDEST_OPSET)
    except Exception as error:  # onnx has no class for what its converter raises
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} has opset {opset}, and onnx cannot bring it to opset {OLDEST_OPSET} ({reason}); export it again "
            f"with opset {OLDEST_OPSET} or later"
        ) from error
    for node in made.graph.node:
        node.metadata_props.extend(kept.get(node.output[0], ()))  # the converter keeps the name but not these
        if node.output[0] in own:
            node.domain = ""
    return made


def _own_operators(proto: Any, opset: int) -> set[str]:
    """The first outputs of onnxruntime's own operators without a domain, which get one that the converter passes over.

    onnxruntime saves such graphs: LayerNormalization before opset 17, for one.
    """
    own = set()
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and not _is_known(node.op_type, opset):
            node.domain = "com.microsoft"
            own.add(node.output[0])
    if own and all(domain.domain != "com.microsoft" for domain in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return own


def _is_known(operator: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True
