"""The torch modules that the nodes of a graph come from, by name."""

import ast
import difflib
from collections.abc import Sequence

import onnx_ir as ir

from sae_runtime.bundle.transformer_lens import listed

_SCOPES = "pkg.torch.onnx.name_scopes"

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
