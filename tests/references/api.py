"""docs/reference/api.md: the public names of Python, by their docstrings and signatures."""

import ast
import dataclasses
import functools
import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

from references.prose import escaped, fenced, markdown_of, wrapped

_HEAD = """# Python API

Arrays are numpy's, and `[n, d_in]` is a shape. The examples run in the tests, where `sae`, `x`, `model_path`,
`bundle_path` and the like are small ones that are at hand. A name of `sae_runtime` is imported when it is first asked
for. What needs an extra raises a sentence with the line that installs it.
"""


@dataclasses.dataclass(frozen=True)
class Room:
    """A section of the page: public names of modules, with a sentence of what they are for."""

    title: str
    about: str
    names: tuple[str, ...]  # such as "sae_runtime.load"


PACKAGES = ("sae_runtime", "sae_runtime.train", "sae_runtime.exports")
"""The front doors."""


def names_of(package: str) -> tuple[str, ...]:
    """The names that a package gives away."""
    return tuple(importlib.import_module(package).__all__)


def _front(package: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names_of(package))


ROOMS = (
    Room(
        "Read and steer",
        "`import sae_runtime`: SAEs on activations, deployed models on text, activations and features on disk.",
        (
            *("sae_runtime.load", "sae_runtime.SAE", "sae_runtime.Features", "sae_runtime.Edit"),
            *("sae_runtime.load_model", "sae_runtime.Model", "sae_runtime.Manifest", "sae_runtime.BundleError"),
            *("sae_runtime.open_activations", "sae_runtime.Activations"),
            *("sae_runtime.read_features", "sae_runtime.StoredFeatures"),
            *("sae_runtime.build_store", "sae_runtime.open_store", "sae_runtime.Store"),
        ),
    ),
    Room(
        "What these give",
        "Objects that methods above return.",
        (
            "sae_runtime.deployed.text_features.TextFeatures",
            "sae_runtime.deployed.spliced_sae.SplicedSAE",
            "sae_runtime.generation.answer.Answer",
        ),
    ),
    Room(
        "Edits and gates as inputs of a graph",
        "For callers who run a spliced graph themselves, and to say which tokens edits reach.",
        (
            "sae_runtime.core.gates.positions",
            "sae_runtime.core.gates.spans",
            "sae_runtime.core.edits.as_inputs",
        ),
    ),
    Room("Fit", "`sae_runtime.train`; needs torch (the extra `train`).", _front("sae_runtime.train")),
    Room("Export and splice", "`sae_runtime.exports`; needs onnx (the extra `export`).", _front("sae_runtime.exports")),
    Room(
        "Features of a corpus",
        "What `sae-runtime extract` and `features find` do.",
        (
            "sae_runtime.extraction.extract.extract",
            "sae_runtime.extraction.extract.Extracted",
            "sae_runtime.extraction.text_source.TextSource",
            "sae_runtime.activations.reading.Reading",
            "sae_runtime.extraction.ray_engine.ray_engine",
            "sae_runtime.extraction.finding.find",
            "sae_runtime.extraction.finding.Found",
            "sae_runtime.extraction.finding.Example",
        ),
    ),
    Room(
        "Labels",
        "What `sae-runtime features label` does.",
        (
            "sae_runtime.labelling.importing.import_labels",
            "sae_runtime.labelling.importing.Imported",
            "sae_runtime.labelling.target.find_target",
            "sae_runtime.labelling.target.Target",
        ),
    ),
    Room(
        "Publish",
        "What `sae-runtime push` does, and the model card of a bundle (the extra `hub`).",
        ("sae_runtime.publishing.push", "sae_runtime.bundle.card.card"),
    ),
    Room(
        "Sites",
        "What `sae-runtime browse` does.",
        ("sae_runtime.browser.site.write_site.write_site", "sae_runtime.browser.site.write_site.Site"),
    ),
    Room(
        "Serve",
        "What `sae-runtime serve` does, inside another program: the plane has no HTTP in it, and the app is an ASGI "
        "application over a plane (the extra `serve`).",
        (
            "sae_runtime.serve.plane.Plane",
            "sae_runtime.serve.catalogue.open_all",
            "sae_runtime.serve.limits.Limits",
            "sae_runtime.serve.http.app.App",
        ),
    ),
    Room(
        "Inside vLLM",
        "For callers of vLLM with [the plugin](../guides/vllm.md).",
        ("sae_runtime.serve.vllm.reading.features_of", "sae_runtime.serve.vllm.corpus.extract"),
    ),
)


def page() -> str:
    """The text of the page."""
    parts = [_HEAD, *_contents()]
    for room in ROOMS:
        parts += [f"## {room.title}", wrapped(room.about)]
        for name in room.names:
            parts += _name(name)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def shown(name: str) -> str:
    """A name's heading: as it is imported, without the package where that has no other of the name."""
    last = name.rpartition(".")[2]
    twins = [other for room in ROOMS for other in room.names if other.rpartition(".")[2] == last]
    return last if len(twins) == 1 else name.removeprefix("sae_runtime.")


def methods(kind: type) -> list[str]:
    """The public methods and properties of a class, its own first, then those of its bases in this project."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("sae_runtime"):
            names |= {name: None for name, value in vars(base).items() if not name.startswith("_") and _callable(value)}
    return list(names)


def _callable(value: Any) -> bool:
    kinds = (types.FunctionType, classmethod, staticmethod, property, functools.cached_property)
    return isinstance(value, kinds)


def _contents() -> Iterator[str]:
    rows = []
    for room in ROOMS:
        links = ", ".join(f"[`{shown(name)}`](#{shown(name).lower().replace('.', '')})" for name in room.names)
        rows.append(f"| {room.title} | {links} |")
    yield "\n".join(["| for | names |", "|---|---|", *rows])


def _name(name: str) -> Iterator[str]:
    value, heading = found(name), shown(name)
    module, _, last = name.rpartition(".")
    yield f"### {heading}"
    yield fenced("\n".join([f"from {module} import {last}", "", *_signatures(value, last)]))
    yield markdown_of(inspect.getdoc(value) or "")
    if isinstance(value, type):
        if dataclasses.is_dataclass(value):
            told = {
                field.name: field.metadata["help"] for field in dataclasses.fields(value) if "help" in field.metadata
            }
            if told:
                yield "Fields:\n\n" + _list(told)
        members = {method: inspect.getattr_static(value, method) for method in methods(value)}
        plain = {
            method: " ".join(text.split())
            for method, member in members.items()
            if _is_property(member) and ">>>" not in (text := inspect.getdoc(member) or "") and "\n\n" not in text
        }
        if plain:
            yield "Properties:\n\n" + _list(plain)
        for method, member in members.items():
            if method not in plain:
                yield f"#### {heading}.{method}"
                if not _is_property(member):
                    yield fenced("\n".join(_signatures(getattr(value, method), f"{last}.{method}")))
                yield markdown_of(inspect.getdoc(member) or "")


def _list(entries: dict[str, str]) -> str:
    return "\n".join(wrapped(f"- `{name}`: {escaped(text)}", indent="  ") for name, text in entries.items())


def _is_property(member: Any) -> bool:
    return isinstance(member, property | functools.cached_property)


def _signatures(value: Any, name: str) -> list[str]:
    """The lines that define a function or a class, as a caller sees them; each overload has one."""
    value = inspect.unwrap(value)
    if isinstance(value, type):
        return _of_class(value, name)
    tree = _tree(inspect.getmodule(value))
    nodes = [node for path, node in tree if path == value.__qualname__ and isinstance(node, ast.FunctionDef)]
    overloads = [node for node in nodes if any(ast.unparse(one).endswith("overload") for one in node.decorator_list)]
    return [line for node in overloads or nodes[-1:] for line in _of_function(node, name)]


def _of_class(kind: type, name: str) -> list[str]:
    if dataclasses.is_dataclass(kind):
        node = next(node for path, node in _tree(inspect.getmodule(kind)) if path == kind.__qualname__)
        assert isinstance(node, ast.ClassDef)
        parts = []
        for line in node.body:
            if isinstance(line, ast.AnnAssign):
                default = "" if line.value is None else _default(line.value)
                parts.append(f"{ast.unparse(line.target)}: {_annotation(line.annotation)}{default}")
        keywords = all(field.kw_only for field in dataclasses.fields(kind))
        return _joined(f"class {name}", ["*"] * keywords + parts, "")
    if "Args:" in (inspect.getdoc(kind) or "") and "__init__" in vars(kind):
        tree = _tree(inspect.getmodule(kind))
        node = next(node for path, node in tree if path == f"{kind.__qualname__}.__init__")
        assert isinstance(node, ast.FunctionDef)
        return _joined(f"class {name}", _parameters(node.args), "")
    return [f"class {name}"]


def _default(value: ast.expr) -> str:
    """The default of a field, as a caller gets it; "" where it has none."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in ("field", "option"):
        given = [*value.args[:1], *(word.value for word in value.keywords if word.arg == "default")]
        made = [f"{ast.unparse(word.value)}()" for word in value.keywords if word.arg == "default_factory"]
        text = (made or [ast.unparse(one) for one in given] or ["MISSING"])[0]
        return "" if text.endswith("MISSING") else f" = {text}"
    return f" = {ast.unparse(value)}"


def _of_function(node: ast.FunctionDef, name: str) -> list[str]:
    returned = "" if node.returns is None else f" -> {_annotation(node.returns)}"
    return _joined(name, _parameters(node.args), returned)


def _parameters(arguments: ast.arguments) -> list[str]:
    every = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(every) - len(arguments.defaults)) + [*arguments.defaults]
    parts = [_parameter(one, default) for one, default in zip(every, defaults, strict=True)]
    if every and every[0].arg in ("self", "cls"):
        parts = parts[1:]
    if arguments.vararg:
        parts.append("*" + _parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    return [*parts, *(["**" + _parameter(arguments.kwarg, None)] if arguments.kwarg else [])]


def _parameter(one: ast.arg, default: ast.expr | None) -> str:
    kind = "" if one.annotation is None else f": {_annotation(one.annotation)}"
    return f"{one.arg}{kind}" + ("" if default is None else f"{' = ' if kind else '='}{ast.unparse(default)}")


def _annotation(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", "") if "Literal" not in ast.unparse(node) else ast.unparse(node)


def _joined(name: str, parts: list[str], returned: str) -> list[str]:
    line = f"{name}({', '.join(parts)}){returned}"
    if len(line) <= 96:
        return [line]
    return [f"{name}(", *(f"    {part}," for part in parts), f"){returned}"]


@functools.cache
def _tree(module: Any) -> list[tuple[str, ast.AST]]:
    """Every definition of a module with its qualified name."""

    def below(node: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                yield path + inner.name, inner
                yield from below(inner, f"{path}{inner.name}.")

    return list(below(ast.parse(inspect.getsource(module)), ""))
