"""The torch modules that the nodes of a graph come from, by name."""

import ast
import difflib
import re
from collections.abc import Sequence

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|h|layers?)\.(?P<number>\d+)")
_LISTED = 12  # at most this many names in a message

Scopes = Sequence[str]  # the modules around a node, the outermost first


def scopes_of(graph: ir.Graph) -> dict[ir.Node, Scopes]:
    """The modules of every node whose metadata or name tells them."""
    scopes: dict[ir.Node, Scopes] = {}
    for node in graph:
        written = node.metadata_props.get(_SCOPES)
        if written is not None:
            names = ast.literal_eval(written)[:-1]  # the last is the operation itself
            scopes[node] = [name for name in names if name]
        elif node.name and node.name.startswith("/"):
            parts = node.name.strip("/").split("/")[:-1]
            scopes[node] = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if scopes:
        for node in graph:
            if node not in scopes:  # the exporter's optimiser made it: it is where all its neighbours are
                near = (*node.predecessors(), *node.successors())
                scopes[node] = _common([scopes[neighbour] for neighbour in near if neighbour in scopes])
    return {node: names for node, names in scopes.items() if names}


def _common(scopes: Sequence[Scopes]) -> Scopes:
    return [names[0] for names in zip(*scopes, strict=False) if len(set(names)) == 1]


def named_module(modules: Sequence[str], name: str) -> str:
    """The one module of this name; a wrapper may add to the front of the name, or the first part may be missing.

    >>> named_module(["model.encoder.layer.0", "model.encoder.layer.1"], "encoder.layer.1")
    'model.encoder.layer.1'

    Raises:
        ValueError: no module has the name, or several modules have it.
    """
    base = name.partition(".")[2]  # a model with a head names its modules from the head
    for wanted in (name, base) if "." in base else (name,):
        matching = [module for module in modules if module == wanted] or [
            module for module in modules if module.endswith(f".{wanted}")
        ]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ValueError(f"{name} is the name of several modules, {listed(matching)}; give more of it")
    close = difflib.get_close_matches(name, modules, n=5, cutoff=0)
    raise ValueError(f"the graph has no module {name!r}; close names are {listed(close)}")


def numbered_block(modules: Sequence[str], number: int) -> str:
    """The block of a number, as TransformerLens counts blocks.

    >>> numbered_block(["transformer.h.0", "transformer.h.0.mlp", "transformer.h.1"], 0)
    'transformer.h.0'

    Raises:
        ValueError: no block has the number, or several blocks have it.
    """
    blocks = {match[0]: int(match["number"]) for match in map(_BLOCK.fullmatch, modules) if match}
    matching = [name for name in blocks if blocks[name] == number]
    outermost = [name for name in matching if not any(name.startswith(f"{other}.") for other in matching)]
    if len(outermost) != 1:
        raise ValueError(
            f"blocks.{number} names no block of this graph for certain; name the module, one of "
            f"{listed(outermost or list(blocks))}"
        )
    return outermost[0]


def is_block(module: str) -> bool:
    """Whether a module is a numbered block, such as transformer.h.3."""
    return _BLOCK.fullmatch(module) is not None


def listed(names: Sequence[str]) -> str:
    """The first names for a message, and how many more there are.

    >>> listed(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
