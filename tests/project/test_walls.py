"""Rooms have walls: a test names each import that the table of rooms does not allow."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import table

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "sae_runtime": ROOT / "sae_runtime",
    "sae_runtime.train": ROOT / "train",
    "sae_runtime.exports": ROOT / "exports",
}
ANYTHING = None

# Rooms that the modules of each room may import, besides their own room.
MAY_IMPORT: dict[str, tuple[str, ...] | None] = {
    "core": (),
    "bundle": ("core",),
    "activations": ("core", "bundle"),
    "text": ("core", "bundle", "activations"),
    "calibration": ("core", "bundle", "activations"),
    "engine": ("core", "bundle", "activations"),
    "rebuild": ("bundle", "exports.export"),
    "deployed": ("core", "bundle", "engine", "text"),
    "generation": ("core", "bundle", "engine", "text", "deployed"),
    "sae": ("core", "bundle", "activations", "engine", "rebuild"),
    "model": ("core", "bundle", "engine", "text", "deployed", "generation"),
    "extraction": ("core", "bundle", "activations", "engine", "text", "sae", "deployed", "model"),
    "store": ("core", "bundle", "extraction"),
    "labelling": ("core", "bundle", "deployed", "store"),
    "serve": ("core", "bundle", "engine", "text", "deployed", "generation", "sae", "model"),
    "serve.vllm": ("core", "bundle", "activations", "text", "extraction", "serve", "train.measure.torch_sae"),
    "checkpoints": ("core", "bundle"),
    "browser": ("core", "bundle", "store", "deployed", "model"),
    "publishing": ("core", "bundle", "deployed"),
    "train": ("core", "bundle", "activations", "calibration"),
    "exports": ("bundle", "core.progress", "engine.sessions", "engine.trial"),
    "cli": ANYTHING,
    "demo": ANYTHING,
    "__init__": ("core", "bundle", "activations", "sae", "model", "store", "extraction"),
}
"""The front doors, sae.py and model.py, and rebuild.py are rooms of one file."""

# The same of the rooms inside train and exports. What they import of their own folder lies below them.
INNER = {
    "train.step": ("train.world", "bundle.quota"),
    "train.harvest": (
        *("train.device", "train.held_out", "train.settings", "train.source"),
        *("core", "bundle", "activations"),
    ),
    "train.measure": (
        *("train.step", "train.harvest", "train.device", "train.divided", "train.held_out", "train.recipe"),
        "train.settings",
        *("core", "bundle", "activations"),
    ),
    "exports.graphs": ("bundle",),
    "exports.certified": ("exports.graphs", "bundle"),
    "exports.model": ("exports.graphs", "exports.splice", "exports.witness"),
    "exports.splice": (
        *("exports.graphs", "exports.witness", "bundle"),
        *("core.progress", "engine.sessions", "engine.trial"),
    ),
}

# Packages that the runtime must not need, and the rooms that may import them.
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "triton"}
MAY_BE_HEAVY = ("train", "exports", "checkpoints", "serve.vllm", "cli", "demo")


def modules() -> Iterator[tuple[str, Path]]:
    """The dotted name below sae_runtime and the file of every module."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            inside = [*package.split(".")[1:], *parts]
            yield ".".join(inside[:-1] if inside[-1] == "__init__" and len(inside) > 1 else inside), path


MODULES = dict(modules())


def room_of(module: str) -> str:
    """The skin of vLLM runs where torch is, so it is a room of its own."""
    return "serve.vllm" if f"{module}.".startswith("serve.vllm.") else module.split(".")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also of imports in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def ours(name: str) -> str | None:
    """The module below sae_runtime that an imported name is in; None for other libraries."""
    parts = name.split(".")
    if parts[0] != "sae_runtime":
        return None
    for end in range(len(parts), 1, -1):
        if (module := ".".join(parts[1:end])) in MODULES:
            return module
    return "__init__"


def broken_walls(module: str, room: str, allowed: tuple[str, ...]) -> list[str]:
    """A line for each import of a module that is outside its room and outside the rooms that are allowed."""
    file, doors = MODULES[module].relative_to(ROOT), ", ".join(allowed) or "nothing"
    return [
        f"{file}:{line} imports {target}; {room} may import {doors}"
        for line, name in imports(MODULES[module])
        if (target := ours(name)) is not None
        and not any(target == door or target.startswith(f"{door}.") for door in (room, *allowed))
    ]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(module)
    assert room in MAY_IMPORT, f"{module} is in no room; name the room in this test and in docs/architecture.md"
    allowed = MAY_IMPORT[room]
    broken = [] if allowed is ANYTHING else broken_walls(module, room, allowed)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("room", INNER)
def test_room_inside_train_or_exports_imports_only_what_lies_below_it(room: str) -> None:
    inside = [module for module in MODULES if module == room or module.startswith(f"{room}.")]
    assert len(inside) > 1
    broken = [line for module in inside for line in broken_walls(module, room, INNER[room])]
    assert not broken, "\n".join(broken)


def test_every_room_inside_train_and_exports_has_walls() -> None:
    inner = {f"{top}.{path.parent.name}" for top in ("train", "exports") for path in (ROOT / top).glob("*/__init__.py")}
    assert inner == set(INNER)


def test_the_map_of_the_code_has_the_same_rooms_and_walls() -> None:
    rooms = {name.strip("`"): set(re.findall(r"`([\w.]+)`", may)) for name, _, may in table("architecture.md", "room")}
    free = {name.strip("`") for name, _, may in table("architecture.md", "room") if may == "anything"}
    assert rooms == {room: set(doors or ()) for room, doors in MAY_IMPORT.items()}
    assert free == {room for room, doors in MAY_IMPORT.items() if doors is ANYTHING}


@pytest.mark.parametrize("module", MODULES)
def test_module_outside_the_heavy_rooms_imports_no_torch_and_no_onnx(module: str) -> None:
    if room_of(module) in MAY_BE_HEAVY:
        return
    broken = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(MODULES[module])
        if name.split(".")[0] in HEAVY
    ]
    assert not broken, "\n".join(broken)


def test_modules_import_each_other_without_circles() -> None:
    """Imports in functions do not count, because they run later."""
    edges = {
        module: {
            target
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.col_offset == 0 and node.module
            for alias in node.names
            if (target := ours(f"{node.module}.{alias.name}")) not in (None, module, "__init__")
        }
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in edges[module]:
                visit(str(target), (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
