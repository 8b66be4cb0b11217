"""Find the tensor of a host model's graph that a hook names (sae_runtime/bundle/hooks.py lists the forms of hooks).

The graph must prove the tensor, or the hook is refused:

- It is the one value that leaves (or enters) the nodes of one call of the module, as calls.py tells them.
- The nodes at the module's border are surely inside it or surely outside, as modules.py tells. A node that an optimiser
  put there may hold the module's bias, sum or norm, and a value before it would not be what the module gives.
- The residual stream of a block is the value that its sums carry on, as stream.py follows it.

Norms that add to the stream are looked at as a sum and a norm, and are taken apart where a hook names the sum.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import onnx_ir as ir

from sae_runtime.bundle.hooks import Hook, Place
from sae_runtime.bundle.transformer_lens import as_module, block_number, listed, numbered_block
from sae_runtime.exports.splice.calls import nodes_of_call
from sae_runtime.exports.splice.fused_norm import in_original, role_of, taken_apart
from sae_runtime.exports.splice.modules import FLOATS, Where, in_bodies, modules_in, named_module, owner, places_of
from sae_runtime.exports.splice.stream import is_read_beside, sums_on, way_of

_LENS_STREAM = re.compile(r"blocks\.(?P<number>\d+)\.hook_(?P<place>resid_(?:pre|mid|post))")
_SIZES = ("Shape", "Size")  # they read no numbers


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
    whole = taken_apart(graph)
    places = places_of(whole)
    if not places:
        values = [value for node in graph for value in node.outputs if _is_activation(value)]
        known = [str(value.name) for value in values if _width(value) == d_in]
        tensors = f"such as {listed(known)}" if known else f"where a tensor has {d_in} columns, of which none is known"
        raise ValueError(
            "the graph names no modules: it was optimised, or exported in another way; splice before optimising, or "
            f"hook tensor:NAME, {tensors}"
        )
    modules = modules_in(places)
    wanted = _of_lens(hook, modules) if hook.place == "lens" and hook.name not in modules else hook
    name = named_module(modules, wanted.name)
    place = "resid_pre" if wanted.place == "input" and block_number(name) is not None else wanted.place
    module = _Module(whole, places, name, nodes_of_call(whole, places, name, wanted), d_in)
    return in_original(graph, _STRATEGIES[place](module))


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
    """One call of a module in a graph: the nodes inside it, and the activations that go in and out."""

    def __init__(
        self, graph: ir.Graph, places: Mapping[ir.Node, Where], name: str, nodes: Sequence[ir.Node], d_in: int
    ) -> None:
        self.places, self.name, self.d_in = places, name, d_in
        self._held = in_bodies(graph)
        self.nodes = dict.fromkeys(nodes)
        if block_number(name) is not None:
            self.nodes |= dict.fromkeys(self._last_sums())

    def _last_sums(self) -> list[ir.Node]:
        """The sums in norms of onnxruntime-genai's builder that add what the block gives to what it read."""
        entering = set(self.entering())
        found = [node for node in self._readers_of(self.nodes) if entering & set(node.inputs) and _is_builders(node)]
        return [*found, *(node for node in self._readers_of(found) if _is_builders(node))]

    def _readers_of(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        uses = (use.node for node in nodes for value in node.outputs for use in value.uses())
        return [self._held.get(node, node) for node in uses]

    def entering(self) -> list[ir.Value]:
        """The activations that the module reads."""
        inside = [*self.nodes, *(node for node, holder in self._held.items() if holder in self.nodes)]
        made = set(inside)
        read = dict.fromkeys(value for node in inside for value in node.inputs if value is not None)
        outside = [value for value in read if value.producer() not in made and not value.is_initializer()]
        return sorted(filter(_is_activation, outside), key=lambda value: value.name or "")

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes outside this call of the module that read the numbers of a value."""
        nodes = dict.fromkeys(self._held.get(use.node, use.node) for use in value.uses())
        return [node for node in nodes if node not in self.nodes and node.op_type not in _SIZES]

    def is_outside(self, node: ir.Node) -> bool:
        """Whether a node that is not known to be inside surely does nothing that the module does."""
        parameters = [name for value in node.inputs if (name := owner(value)) is not None]
        own = any(f"{name}.".startswith(f"{self.name}.") for name in parameters)
        where = self.places[node]
        return where.within(self.name) is True or (where.within(self.name) is False and (where.named or not own))

    def leaving(self) -> list[ir.Value]:
        """The activations that nodes surely outside the module read, or that the graph gives."""
        values = [value for node in self.nodes for value in node.outputs if _is_activation(value)]
        return [v for v in values if v.is_graph_output() or any(map(self.is_outside, self.readers(v)))]

    def hidden(self) -> list[ir.Value]:
        """The activations that leave the nodes of the module for nodes alone that may be a part of it."""
        values = [value for node in self.nodes for value in node.outputs if _is_activation(value)]
        leaving = set(self.leaving())
        return [value for value in values if value not in leaving and self.readers(value)]

    def stream(self, last: ir.Value) -> list[ir.Value] | None:
        """The values through which what enters comes to `last` by sums alone; None where it does not."""
        ways = [way_of(value, last, self.nodes) for value in self.entering() if _width(value) == self.d_in]
        found = [way for way in ways if way is not None and len(way) > 1]
        return found[0] if len(found) == 1 else None


def _is_builders(node: ir.Node) -> bool:
    """Whether a node is a sum in a norm of onnxruntime-genai's builder."""
    role = role_of(node)
    return role is not None and role.names_itself and role.part != "norm"


def _output(module: _Module) -> ir.Value:
    """The output of a module: the one activation that leaves it.

    module[ ... node ] --output--> node
    """
    leaving, hidden = module.leaving(), module.hidden()
    fitting = [value for value in hidden if _width(value) == module.d_in]
    if fitting and not any(_width(value) == module.d_in for value in leaving):
        raise _inside(module.readers(fitting[0])[0], f"what {module.name} gives")
    return _only([*leaving, *hidden] if not fitting else leaving, module.d_in, f"what {module.name} gives")


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
    value = _entering_whole(module, _only(entering, module.d_in, f"what enters {module.name}"))
    if value.is_graph_output() or module.readers(value):
        raise ValueError(
            f"not only {module.name} reads {value.name}, so an edit there would reach more than input:{module.name}; "
            "hook BLOCK.resid_mid for the stream, or tensor:NAME"
        )
    return value


def _stream_before(block: _Module) -> ir.Value:
    """The residual stream that enters a block, or the only activations that enter it.

    stream --resid_pre--> block[ Norm, attention, Add, Norm, mlp, Add ]
    """
    leaving = [value for value in block.leaving() if _width(value) == block.d_in]
    way = block.stream(leaving[0]) if len(leaving) == 1 else None
    value = way[0] if way else _only(block.entering(), block.d_in, f"what enters {block.name}")
    return _entering_whole(block, value)


def _entering_whole(module: _Module, value: ir.Value) -> ir.Value:
    """A value that enters a module, if no node before it may do a part of what the module does."""
    producer = value.producer()
    if producer is not None and not module.is_outside(producer):
        raise _inside(producer, f"what enters {module.name}")
    return value


def _stream_inside(block: _Module) -> ir.Value:
    """The sum between attention and MLP of a block: it carries the stream, and the MLP reads it.

    block[ Norm, attention, Add --resid_mid--> Norm, mlp, Add ]
    """
    leaving = [value for value in block.leaving() if _width(value) == block.d_in]
    ways = [way for value in leaving if (way := block.stream(value)) is not None]
    way = max(ways, key=len, default=[])
    if not way or not set(leaving) <= set(way):  # the graph may give a sum on the way too
        raise _no_stream(block, "resid_mid", _output(block))
    last = way[-1]
    sums = [value for value in sums_on(way, block.nodes) if value is not last]
    read = [value for value in sums if is_read_beside(value, way, block.nodes)]
    if not read:
        raise ValueError(
            f"{block.name} has no resid_mid, for its attention and MLP read the same stream; hook a module"
        )
    return _only(read, block.d_in, f"the sums in {block.name} before its last")


def _stream_after(block: _Module) -> ir.Value:
    """The sum that ends a block and carries the stream.

    block[ Norm, attention, Add, Norm, mlp, Add ] --resid_post--> block
    """
    last = _output(block)
    if block.stream(last) is None:
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


def _inside(node: ir.Node, what: str) -> ValueError:
    return ValueError(
        f"{what} may be inside {node.op_type} ({node.name or node.outputs[0].name}), which an optimiser put in the "
        "place of several parts; splice before optimising, or hook tensor:NAME or a module around it"
    )


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
    return value.dtype in FLOATS and shape is not None and len(shape) == 3 and isinstance(shape[2], int)


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
