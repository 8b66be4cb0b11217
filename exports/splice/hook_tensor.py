"""Find the tensor of a host model's graph that a hook names (sae_runtime/bundle/hooks.py lists the forms of hooks).

torch's exporter writes the names of the modules on every node. Other exporters name their nodes by path
(/model/layers.3/mlp/down_proj/MatMul), which says the same. The exporter of onnxruntime-genai adds a block's output to
the residual stream inside the next norm; where a hook names the stream, that norm is taken apart.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import onnx_ir as ir

from sae_runtime.bundle.hooks import Hook, Place
from sae_runtime.bundle.transformer_lens import as_module, block_number, listed, numbered_block
from sae_runtime.exports.splice.fused_norm import is_fused_norm, unfused
from sae_runtime.exports.splice.modules import Scopes, named_module, scopes_of

_LENS_STREAM = re.compile(r"blocks\.(?P<number>\d+)\.hook_(?P<place>resid_(?:pre|mid|post))")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def find_hook(graph: ir.Graph, hook: Hook, d_in: int) -> ir.Value:
    """The tensor [b, t, d_in] that a hook names; a fused norm may be taken apart for it.

    >>> from sae_runtime.bundle.hooks import parse_hook
    >>> find_hook(ir.load(host_path).graph, parse_hook("encoder.layer.0"), d_in=24).shape[2]
    24

    Raises:
        ValueError: no tensor fits, several fit, or the tensor has another width; the message lists candidates.
    """
    if hook.place == "tensor":
        return _tensor(graph, hook.name, d_in)
    if hook.call is not None:
        raise ValueError(f"a graph does not tell the calls of a module apart, got {hook}; hook tensor:NAME")
    scopes = scopes_of(graph)
    if not scopes:
        values = [value for node in graph for value in node.outputs if _is_activation(value)]
        raise ValueError(
            "the graph names no modules: it was optimised, or exported in another way; splice before optimising, or "
            f"hook tensor:NAME, such as {listed([str(value.name) for value in values if _width(value) == d_in])}"
        )
    modules = sorted({scope for names in scopes.values() for scope in names})
    wanted = _of_lens(hook, modules) if hook.place == "lens" and hook.name not in modules else hook
    name = named_module(modules, wanted.name)
    place = "resid_pre" if wanted.place == "input" and block_number(name) is not None else wanted.place
    return _STRATEGIES[place](_Module(graph, scopes, name, d_in))


def _of_lens(hook: Hook, modules: Sequence[str]) -> Hook:
    """The module's hook, or the stream of a block, that a name of TransformerLens means.

    A stream is found in the graph, which shows whether the block has it.
    """
    stream = _LENS_STREAM.fullmatch(hook.name)
    if stream:
        return Hook(numbered_block(modules, int(stream["number"])), cast(Place, stream["place"]))
    if hook.name.endswith("hook_mlp_in"):
        raise ValueError(
            f"a graph has one tensor for the stream and for what the norm reads, so it has no {hook}; write "
            f"{hook.name.replace('hook_mlp_in', 'hook_resid_mid')} or input:MODULE"
        )
    return as_module(hook, modules, None)


class _Module:
    """A module in a graph: the nodes inside it, and the activations that go in and out."""

    def __init__(self, graph: ir.Graph, scopes: dict[ir.Node, Scopes], name: str, d_in: int) -> None:
        self.graph, self.name, self.d_in = graph, name, d_in
        self.nodes = [node for node in graph if name in scopes.get(node, ())]
        self.norms = [node for node in self.nodes if is_fused_norm(node)]
        direct = [node for node in self.nodes if scopes[node][-1] == name]  # in none of its submodules
        self.sums = [node.outputs[0] for node in direct if node.op_type == "Add" and _is_activation(node.outputs[0])]

    def entering(self) -> list[ir.Value]:
        """The activations that the module reads."""
        read, inside = {value for node in self.nodes for value in node.inputs if value is not None}, set(self.nodes)
        outside = [value for value in read if value.producer() not in inside and not value.is_initializer()]
        return sorted(filter(_is_activation, outside), key=lambda value: value.name or "")

    def leaving(self) -> list[ir.Value]:
        """The activations that nodes outside the module read, or that the graph gives."""
        values = [value for node in self.nodes for value in node.outputs if _is_activation(value)]
        return [value for value in values if value.is_graph_output() or self.readers(value)]

    def readers(self, value: ir.Value) -> set[ir.Node]:
        """The nodes outside the module that read a value."""
        return {use.node for use in value.uses()}.difference(self.nodes)

    def first_norms(self) -> list[ir.Node]:
        """The fused norms that add two values from outside the module."""
        entering = set(self.entering())
        return [node for node in self.norms if {node.inputs[0], node.inputs[1]} <= entering]

    def sum_in(self, norm: ir.Node) -> ir.Value:
        """The sum inside a fused norm, which is taken apart."""
        return _only([unfused(self.graph, norm)], self.d_in, self.name)


def _output(module: _Module) -> ir.Value:
    """The output of a module; for a block before a fused norm, the sum inside that norm.

    module[ ... node ] --output--> node

    block[ ... mlp ] --x---+
    stream ----------------+--> SkipNorm[ Add --output--> Norm ]
    """
    leaving = module.leaving()
    norms = {node for value in leaving for node in module.readers(value) if is_fused_norm(node)}
    if block_number(module.name) is not None and len(norms) == 1:
        return module.sum_in(norms.pop())
    return _only(leaving, module.d_in, f"what {module.name} gives")


def _input(module: _Module) -> ir.Value:
    """The only activations that a module reads, if it alone reads them.

    norm --input--> mlp[ ... ]
    """
    entering = module.entering()
    if len(entering) != 1:
        found = listed([str(value.name) for value in entering]) if entering else "no activations [b, t, d]"
        raise ValueError(
            f"input:{module.name} is not one tensor but {found}; hook tensor:NAME, or the output of another module"
        )
    value = _only(entering, module.d_in, f"what enters {module.name}")
    if value.is_graph_output() or module.readers(value):
        raise ValueError(
            f"not only {module.name} reads {value.name}, so an edit there would reach more than input:{module.name}; "
            "hook BLOCK.resid_mid for the stream, or tensor:NAME"
        )
    return value


def _stream_before(block: _Module) -> ir.Value:
    """The residual stream that enters a block; for a block that begins with a fused norm, the sum inside that norm.

    stream --resid_pre--> block[ Norm, attention, Add, Norm, mlp, Add ]

    stream ---+
    x --------+--> block[ SkipNorm[ Add --resid_pre--> Norm ] ... ]
    """
    first = block.first_norms()
    if len(first) == 1:
        return block.sum_in(first[0])
    return _only(block.entering(), block.d_in, f"what enters {block.name}")


def _stream_inside(block: _Module) -> ir.Value:
    """The sum between attention and MLP of a block; for a block with fused norms, the sum inside its second one.

    block[ Norm, attention, Add --resid_mid--> Norm, mlp, Add ]

    block[ SkipNorm, attention, SkipNorm[ Add --resid_mid--> Norm ], mlp ]
    """
    first = block.first_norms()
    second = [node for node in block.norms if node not in first]
    if len(second) == 1:
        return block.sum_in(second[0])
    last = _output(block)
    if last not in block.sums:
        raise _no_stream(block, "resid_mid", last)
    before = [value for value in block.sums if value is not last]
    middle = _only(before, block.d_in, f"the sums in {block.name} before its last")
    if all(use.node is last.producer() for use in middle.uses()):
        raise ValueError(
            f"{block.name} has no resid_mid, for its attention and MLP read the same stream; hook a module"
        )
    return middle


def _stream_after(block: _Module) -> ir.Value:
    """The sum that ends a block; for a block with fused norms, its output is that sum.

    block[ Norm, attention, Add, Norm, mlp, Add ] --resid_post--> block

    block[ SkipNorm, attention, SkipNorm, mlp ] --> SkipNorm[ Add --resid_post--> Norm ]
    """
    last = _output(block)
    if not block.norms and last not in block.sums:
        raise _no_stream(block, "resid_post", last)
    return last


_STRATEGIES: Mapping[Place, Callable[[_Module], ir.Value]] = {
    "output": _output,
    "lens": _output,
    "input": _input,
    "resid_pre": _stream_before,
    "resid_mid": _stream_inside,
    "resid_post": _stream_after,
}


def _no_stream(block: _Module, place: str, last: ir.Value) -> ValueError:
    producer = last.producer()
    return ValueError(
        f"{block.name} does not end in a sum of the residual stream but in "
        f"{producer.op_type if producer else 'an input'}, so it has no {place}; hook a module, such as {block.name} "
        "for its output"
    )


def _is_activation(value: ir.Value) -> bool:
    """Whether a value may be [b, t, width]: three dimensions of float numbers, the last one known."""
    shape = value.shape
    return value.dtype in _FLOATS and shape is not None and len(shape) == 3 and isinstance(shape[2], int)


def _width(value: ir.Value) -> int:
    assert value.shape is not None and isinstance(value.shape[2], int)
    return value.shape[2]


def _only(values: Sequence[ir.Value], d_in: int, what: str) -> ir.Value:
    """The one value that is d_in wide."""
    fitting = [value for value in values if _width(value) == d_in]
    if len(fitting) == 1:
        return fitting[0]
    shown = listed([f"{value.name} of width {_width(value)}" for value in fitting or values])
    if fitting:
        raise ValueError(f"{what} is not one tensor but {shown}; hook tensor:NAME")
    given = shown if values else "no activations [b, t, d]"
    raise ValueError(f"{what} is {given}, this SAE expects width {d_in}; hook the module that it was fitted on")


def _tensor(graph: ir.Graph, name: str, d_in: int) -> ir.Value:
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    if name not in values:
        close = difflib.get_close_matches(name, [key for key in values if key], n=5, cutoff=0)
        raise ValueError(f"the graph has no tensor {name!r}; close names are {listed(close)}")
    value = values[name]
    if not _is_activation(value):
        raise ValueError(f"{name} is {value.dtype} {value.shape}, expected float [b, t, {d_in}]; name another tensor")
    return _only([value], d_in, name)
