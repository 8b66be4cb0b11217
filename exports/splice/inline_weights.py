"""The weights inside a host's own file, as a file beside the graphs that read them.

The whole graph and the cut one read the same weights, and the disk holds them once.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from sae_runtime.bundle.folder import record

_MOST = 1 << 20  # bytes that may be in two graphs
_SMALL = 1024  # bytes of a weight that stays, since shape inference reads the small ones
_ALIGNED = 64


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that has to be written.

    Attributes:
        name: of the file, which tells its content.
        tensors: what it holds, each at the next multiple of 64 bytes.
    """

    name: str
    tensors: list[ir.TensorProtocol]

    def is_at(self, path: Path) -> bool:
        """Whether the file is there already."""
        return path.is_file() and self.name == _name(record(path).sha256)

    def write(self, path: Path) -> None:
        """Write the file."""
        with path.open("wb") as file:
            for part in _parts(self.tensors):
                file.write(part)


def take_inline_weights(graph: ir.Graph) -> WeightFile | None:
    """Let a graph refer to a file instead of holding more than about 1 MB of weights itself; None if it holds less.

    >>> from sae_runtime.exports.graphs.graph import Graph
    >>> graph = Graph("host")
    >>> y = graph.op("Add", graph.input("x", np.float32, [1 << 19]), np.ones(1 << 19, np.float32))
    >>> graph.output(y, "y", np.float32, [1 << 19])
    >>> file = take_inline_weights(graph.model().graph)
    >>> file.name[:13], len(file.tensors)
    ('host_weights.', 1)
    """
    values = [value for value in graph.initializers.values() if _is_inline(value.const_value)]
    tensors = [value.const_value for value in values if value.const_value is not None]
    if sum(tensor.nbytes for tensor in tensors) <= _MOST:
        return None
    digest = hashlib.sha256()
    for part in _parts(tensors):
        digest.update(part)
    file = WeightFile(_name(digest.hexdigest()), tensors)
    offset = 0
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = ir.ExternalTensor(
            file.name, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
        )
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNED
    return file


def _name(sha256: str) -> str:
    return f"host_weights.{sha256[:16]}.data"


def _is_inline(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return False
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > _SMALL


def _parts(tensors: list[ir.TensorProtocol]) -> Iterator[bytes]:
    for tensor in tensors:
        data = tensor.tobytes()
        yield data
        yield bytes(-len(data) % _ALIGNED)
