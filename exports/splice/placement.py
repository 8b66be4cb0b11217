"""Where the files of a graph are: onnxruntime reads files in or below the graph's own folder only.

Files of a bundle are copied under names that tell their content. A fit, a calibration or an export replaces the files
of a bundle, and a graph that read those would compute something else without a word.
"""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import onnx_ir as ir

from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.folder import MANIFEST, Bundle, record
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.licences import LICENCE
from sae_runtime.bundle.model_card import name_of_card
from sae_runtime.bundle.model_files import (
    GENAI,
    files_to_copy,
    model_files,
    named_by_genai,
    refuse_shared,
    same_bytes,
    tokenizer_home,
)
from sae_runtime.bundle.ready import is_ready
from sae_runtime.bundle.sealed import CARD, may_write
from sae_runtime.bundle.typed_json import read_file

_BESIDE_BUNDLE = ("labels.jsonl", CARD, LICENCE)  # people write these; no manifest lists them
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
    files: dict[str, Path] = field(default_factory=dict)  # by their paths from the folder, with "/"
    how: dict[str, How] = field(default_factory=dict)  # likewise

    def locate(self, file: Path, below: str = "") -> str:
        """The path of the file from the folder; a file that has to be copied goes into the subfolder `below`.

        A file of a bundle is copied beside the graph, under a name that tells its content.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another file of this name goes to the same path.
        """
        real, home = Path(os.path.realpath(file)), Path(os.path.realpath(self.folder))
        if not real.is_file():
            raise FileNotFoundError(f"{file} is missing, which holds weights of the graph; copy the model again")
        of_bundle = (file.parent / MANIFEST).is_file()
        name = f"{file.stem}.{record(real).sha256[:16]}{file.suffix}" if of_bundle else file.name
        for location, known in self.files.items():
            if known == real and Path(location).name == name:
                return location
        inside = real.is_relative_to(home) and not of_bundle
        # A link in a Hub cache leads to a file that is named by its hash.
        location = real.relative_to(home).as_posix() if inside else (Path("" if of_bundle else below) / name).as_posix()
        self.place(real, location, inside=inside)
        return location

    def place(self, file: Path, location: str, *, inside: bool = False) -> None:
        """Let the folder have a file at a path: the one that is there if it is equal, else a copy.

        Raises:
            ValueError: another file goes to the same path.
        """
        real = Path(os.path.realpath(file))
        if not same_bytes(real, self.files.setdefault(location, real)):
            raise ValueError(f"two files would be {location} in {self.folder}; name another --output or --name")
        self.how[location] = "referred" if inside or same_bytes(real, self.folder / location) else "copied"

    def copies(self, path: Path) -> dict[str, Path]:
        """The files that have to be copied, by their paths from the folder.

        Args:
            path: the graph that will be written.

        Raises:
            FileExistsError: another graph in the folder reads a file that would be replaced by other weights.
            ValueError: the graph would be written over one of its files.
        """
        if any(os.path.realpath(path) == os.path.realpath(self.folder / location) for location in self.files):
            raise ValueError(f"two files would be {path}; name another --output")
        copies = {location: file for location, file in self.files.items() if self.how[location] == "copied"}
        for location, file in copies.items():
            if not (file.parent / MANIFEST).is_file():  # those of a bundle have a name that is theirs: this mends them
                refuse_shared(self.folder / location, file, path)
        return copies


def graph_path(host: Path, out: str | Path | None) -> Path:
    """Where the spliced graph goes.

    >>> print(graph_path(Path("model/host.onnx"), None), graph_path(Path("model/host.onnx"), "new"))
    model/host_sae.onnx new/model.onnx

    Raises:
        ValueError: the path is the host's.
    """
    path = host.parent if out is None else Path(out)
    if path.suffix != ".onnx":
        beside = os.path.realpath(path) == os.path.realpath(host.parent)
        path = path / (f"{host.stem}_sae.onnx" if beside else named_by_genai(host.parent) or "model.onnx")
    if os.path.realpath(path) == os.path.realpath(host):
        raise ValueError(f"{path} is the host itself; name another graph or folder with --output")
    return path


def _named_in(value: Any, home: Path) -> set[str]:
    """The files right in a folder that a configuration names anywhere, such as further graphs and adapters."""
    if isinstance(value, str):
        plain = Path(value).name == value and not set(value) & set("\0\\")
        return {value} if plain and (home / value).is_file() else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for one in inner for name in _named_in(one, home)}


def locate_weights(
    model: ir.Model,
    placement: Placement,
    splices: Collection[str],
    homes: Mapping[str, Path],
    copies: Mapping[str, str],
) -> dict[tuple[str, str], str]:
    """Let the graph refer to every external weight by a path from its new folder.

    Args:
        model: the graph; the weights of a new splice have paths from its bundle.
        placement: the new folder.
        splices: the names of all splices in the graph.
        homes: the bundles of the new ones, by name.
        copies: the folders of bundles in the new folder whose files the graph reads where they are, by name.

    Returns:
        the new path of each file, by the splice whose weights it holds ("": the host) and the old path.
    """
    moved: dict[tuple[str, str], str] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        prefix = (value.name or "").partition("/")[0]
        name = prefix if prefix in splices else ""
        base = Path(tensor.base_dir) if tensor.base_dir or name not in homes else homes[name]
        old = PurePosixPath(tensor.location)
        key = name, str(tensor.location)
        if name in copies and key not in moved:
            for known in (old.name, old.name.partition(".")[0] + old.suffix):  # without what tells the content
                here = f"{copies[name]}/{known}"
                if here in placement.files and same_bytes(base / tensor.location, placement.files[here]):
                    moved[key] = here
        if key not in moved:  # `locate` reads the whole file of a bundle
            moved[key] = placement.locate(base / tensor.location, old.parent.as_posix())
        value.const_value = ir.ExternalTensor(
            moved[key], tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=value.name or ""
        )
    return moved


def place_model_files(host: Path, path: Path, placement: Placement) -> None:
    """Copy tokenizer, configuration and the like beside the graph, if it goes into another folder than its host.

    Raises:
        FileExistsError: the folder has files of another model.
        ValueError: the configuration of onnxruntime-genai names its graph otherwise than `path` does, or a file is a
            link out of its folder, other than to the blobs of its Hub cache.
    """
    if os.path.realpath(path.parent) == os.path.realpath(host.parent):
        return
    named = named_by_genai(host.parent)
    if named not in (None, path.name):
        raise ValueError(
            f"{host.parent / GENAI} names its graph {named}; write the spliced one under that name, not {path.name}"
        )
    home = host.parent
    names = set(model_files(home))
    if may_write(home):  # a card of an older splice, not the host's own
        names.discard(CARD)
    if named is not None:
        names |= _named_in(read_file(dict[str, Any], home / GENAI, foreign=True), home) - {named}
        for name in names:
            refuse_link_out(home / name, home)
        graphs = [home / name for name in names if name.endswith(".onnx")]
        names |= {file.relative_to(home).as_posix() for graph in graphs for file in check_external(graph)}
    above = tokenizer_home(host)
    inherited = [name for name in model_files(above) if name != CARD or not may_write(above)]
    found = {} if above == home else files_to_copy(above, inherited, path)
    for name, file in (found | files_to_copy(home, sorted(names), path)).items():
        placement.place(file, name)


def place_card(host: Path, path: Path, placement: Placement, text: str, scratch: Path, *, force: bool) -> None:
    """Let the folder of a graph have our model card, if it is another one than its host's.

    A card that is there stays, unless it is ours and `force` is set. Beside the host's README.md, ours is
    README-sae.md.

    Args:
        host: the graph of the host.
        path: the graph that will be written.
        placement: its folder, which has the host's files already.
        text: the card.
        scratch: a folder that lasts until the files are copied.
        force: whether files may be replaced.
    """
    name = name_of_card(path.parent, copied=CARD in placement.files)
    beside = os.path.realpath(path.parent) == os.path.realpath(host.parent)
    if beside or name is None or ((path.parent / name).exists() and not force):
        return
    (scratch / CARD).write_text(text, "utf-8")
    placement.place(scratch / CARD, name)


def bundle_in(folder: Path, bundle: Path) -> str | None:
    """The path of a bundle that lies below a folder; None if it does not, or is one of the installed package.

    An installation below the folder may go away, so a ready SAE is copied like a bundle from elsewhere.

    >>> bundle_in(Path("model"), Path("model/saes/wide"))
    'saes/wide'
    """
    real, home = Path(os.path.realpath(bundle)), Path(os.path.realpath(folder))
    return real.relative_to(home).as_posix() if home in real.parents and not is_ready(real) else None


def place_bundle(bundle: Bundle, name: str, placement: Placement, instead: Mapping[str, Path] | None = None) -> str:
    """Let the folder of a graph have a copy of a bundle, and give the name of the copy.

    It never replaces another bundle that has the name: it then gets a name that tells its content.

    Args:
        bundle: the bundle, checked.
        name: the folder that the copy gets.
        placement: the folder of the graph.
        instead: files that the copy has instead of the bundle's own, or besides, by name; the manifest is one.
    """
    home, own = bundle.path, dict(instead or {})
    manifest = own.get(MANIFEST, home / MANIFEST).read_bytes()
    there = placement.folder / name
    for location, file in placement.files.items():
        if Path(location).name == MANIFEST and file.read_bytes() == manifest:
            return Path(location).parent.as_posix()
    taken = placement.files.get(f"{name}/{MANIFEST}", there / MANIFEST)
    if taken.is_file() and taken.read_bytes() != manifest or os.path.lexists(there) and not taken.is_file():
        name = f"{name}-{hashlib.sha256(manifest).hexdigest()[:16]}"
    for listed in dict.fromkeys((*bundle.manifest.files, *bundle.manifest.graphs, *own, MANIFEST)):
        if (file := own.get(listed, home / listed)).is_file():  # derived weights may be missing
            placement.place(file, f"{name}/{listed}")
    for written in _BESIDE_BUNDLE:
        if (home / written).is_file() and not (placement.folder / name / written).exists():  # what is there stays
            refuse_link_out(home / written, home)
            placement.place(home / written, f"{name}/{written}")
    return name
