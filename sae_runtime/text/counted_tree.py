"""The syntax tree of a chat template with a counting filter around every part that loops, joins or builds a value."""

from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer


class Counted(NodeTransformer):
    """Puts a counting filter around every part of a template that loops, joins, compares or builds a value."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: D102, N802 # Jinja's name
        cost = 1 + sum(1 for part in node.body for _ in part.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _counting(node.iter, "loop over", nodes.Const(cost))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        return _counting(nodes.List(node.nodes, lineno=node.lineno), "text of")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _counting(node.node, "part of")
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _counting(node.arg, "all of")  # a key is compared, and named where it is missing
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _counting(operand.expr, "all of")
        node.expr = _counting(node.expr, "all of")
        return node

    def _built(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _counting(node, "all of")

    visit_List = visit_Dict = visit_Tuple = _built


def _counting(node: Any, name: str, *arguments: Any) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


class Generation(Extension):
    """`{% generation %}`, by which a template marks the assistant's answers; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:  # noqa: D102
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Any) -> Any:
        return caller()
