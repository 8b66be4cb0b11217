"""Where the files of a graph are: onnxruntime reads files in or below the graph's own folder only.

Files of a bundle are copied under names that tell their content. A fit, a calibration or an export replaces the files
of a bundle, and a graph that read those would compute something else without a word.
"""

import contextlib
import filecmp
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import onnx_ir as ir

from sae_runtime.bundle import files
from sae_runtime.bundle.folder import MANIFEST, record
from sae_runtime.bundle.typed_json import read_file

_GENAI = "genai_config.json"
How = Literal["referred", "copied"]


@dataclass
class Placement:
    """The folder of a graph, and how the graph reaches each file that it needs.

    The graph refers to a file in or below its folder where the file is. Every other file, and every file of a bundle,
    is copied into the folder, unless an equal file lies there.

    >>> placement = Placement(Path("out"))
    >>> placement.locate(Path(host_path))
    'host.onnx'
    >>> _ = placement.locate(Path(bundle_path) / "sae_weights.safetensors")
    >>> [(name.partition(".")[0], how) for name, how in placement.how.items()]
    [('host', 'copied'), ('sae_weights', 'copied')]
    """

    folder: Path
    locations: dict[Path, str] = field(default_factory=dict)  # by file: its path from the folder, with "/"
    how: dict[str, How] = field(default_factory=dict)  # by location

    def locate(self, file: Path, below: str = "") -> str:
        """The path of the file from the folder; a file that has to be copied goes into the subfolder `below`.

        A file of a bundle is copied beside the graph, under a name that tells its content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another file of this name goes to the same path.
        """
        kept = (file.parent / MANIFEST).is_file()
        name = file.name
        file = file.resolve()
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which holds weights of the graph; copy the model again")
        if file not in self.locations:
            home = self.folder.resolve()
            inside = file.is_relative_to(home) and not kept
            if kept:
                location = f"{Path(name).stem}.{record(file).sha256[:16]}{Path(name).suffix}"
            else:
                location = file.relative_to(home).as_posix() if inside else (Path(below) / file.name).as_posix()
            taken = [other for other, known in self.locations.items() if known == location]
            if any(not _same(file, other) for other in taken):
                raise ValueError(f"two files would be {location} in {self.folder}; name another --output or --name")
            target = self.folder / location
            there = inside or _same(file, target)
            self.locations[file], self.how[location] = location, "referred" if there else "copied"
        return self.locations[file]

    @contextlib.contextmanager
    def filled(self, *, force: bool) -> Iterator[None]:
        """Copy the files that are elsewhere; when the block raises, remove the copies and the new folders again.

        Raises:
            FileExistsError: another file has the path of a copy and `force` is not set.
        """
        copies = {self.folder / loc: file for file, loc in self.locations.items() if self.how[loc] == "copied"}
        for target in copies:
            files.check_free(target, force=force)
        with contextlib.ExitStack() as undo:
            _make(self.folder, undo)
            for target, file in copies.items():
                _make(target.parent, undo)
                if not target.exists():
                    undo.callback(_remove, target)
                with files.new_file(target, force=force) as partial:
                    shutil.copyfile(file, partial)
            yield
            undo.pop_all()


def graph_path(host: Path, out: str | Path | None) -> Path:
    """Where the spliced graph goes.

    >>> print(graph_path(Path("model/host.onnx"), None), graph_path(Path("model/host.onnx"), "new"))
    model/host_sae.onnx new/model.onnx

    Raises:
        ValueError: the path is the host's.
    """
    path = host.parent if out is None else Path(out)
    if path.suffix != ".onnx":
        beside = path.resolve() == host.parent.resolve()
        path = path / (f"{host.stem}_sae.onnx" if beside else _named_by_genai(host) or "model.onnx")
    if path.resolve() == host.resolve():
        raise ValueError(f"{path} is the host itself; name another graph or folder with --output")
    return path


def _named_by_genai(host: Path) -> str | None:
    """The graph that the configuration of onnxruntime-genai beside a host names, if there is one."""
    config = host.parent / _GENAI
    if not config.is_file():
        return None
    try:
        return str(read_file(dict[str, Any], config)["model"]["decoder"]["filename"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} names no graph (model.decoder.filename); make the host again") from error


def locate_weights(
    model: ir.Model, placement: Placement, splices: Collection[str], homes: Mapping[str, Path]
) -> dict[tuple[str, str], str]:
    """Let the graph refer to every external weight by a path from its new folder.

    Args:
        model: the graph; the weights of a new splice have paths from its bundle.
        placement: the new folder.
        splices: the names of all splices in the graph.
        homes: the bundles of the new ones, by name.

    Returns:
        the new path of each file, by the splice whose weights it holds ("": the host) and the old path.
    """
    moved = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        prefix = (value.name or "").partition("/")[0]
        name = prefix if prefix in splices else ""
        base = Path(tensor.base_dir) if tensor.base_dir or name not in homes else homes[name]
        folder = PurePosixPath(tensor.location).parent  # of an SAE that the host has already
        outside = ".." in folder.parts or folder.is_absolute()
        below = "" if outside else folder.as_posix()
        location = moved[name, str(tensor.location)] = placement.locate(base / tensor.location, below)
        value.const_value = ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=value.name or ""
        )
    return moved


def locate_companions(host: Path, path: Path, placement: Placement) -> None:
    """Copy tokenizer and configuration of onnxruntime-genai too, if the graph goes into another folder.

    Raises:
        ValueError: the configuration names its graph otherwise than `path` does.
    """
    named = _named_by_genai(host)
    if named is None or path.parent.resolve() == host.parent.resolve():
        return
    if named != path.name:
        raise ValueError(
            f"{host.parent / _GENAI} names its graph {named}; write the spliced one under that name, not {path.name}"
        )
    for file in sorted(host.parent.iterdir()):
        if file.is_file() and file.suffix not in (".onnx", ".data"):
            placement.locate(file)


def _same(file: Path, other: Path) -> bool:
    """Whether another file holds the same bytes; it may be a second name of the file."""
    filecmp.clear_cache()  # it takes a file of the same size and time for the one that it saw before
    return other.is_file() and (other.samefile(file) or filecmp.cmp(file, other, shallow=False))


def _make(folder: Path, undo: contextlib.ExitStack) -> None:
    """Make a folder and its missing parents; `undo` removes them."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir()
            undo.callback(_remove, path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()
