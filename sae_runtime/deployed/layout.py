"""Which files of a folder are which: the graphs of a deployed model, its tokenizer, its configuration, its bundles."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.folder import MANIFEST, WEIGHTS, record
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.hub import SCHEME, leaves, local, refuse_link_out
from sae_runtime.bundle.model_files import CONFIG, GENAI, named_by_genai, tokenizer_home
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.bundle.splices import CUT_OF, Spliced, cut_graph, read_splices
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.deployed.remote import INSIDE, fetch_model
from sae_runtime.deployed.sentence import Sentence, read_sentence

__all__ = ["Layout", "Sentence", "read_layout"]

_USUAL = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a deployed model.

    Attributes:
        graph: the whole graph.
        features: the graph cut off after its last hook that is read, if splice wrote it of this very graph.
        home: the folder of tokenizer.json and config.json: the graph's, or the one above it.
        splices: the SAEs in the graph, by name; none in a graph that is not spliced.
        bundles: the folder of each SAE's bundle, where the graph names it and it is the one that was put in.
        unused: a sentence for each SAE whose bundle is there and is not used.
        config: config.json; {} where there is none.
        genai: genai_config.json; {} likewise.
        sentence: how texts become vectors by sentence-transformers' files; None where there are none.
        notes: sentences about files that are not used, since they do not belong to this graph.
    """

    graph: Path
    features: Path | None
    home: Path
    splices: Mapping[str, Spliced]
    bundles: Mapping[str, Path]
    unused: Mapping[str, str]
    config: Mapping[str, Any]
    genai: Mapping[str, Any]
    sentence: Sentence | None
    notes: tuple[str, ...] = ()


def read_layout(path: str | Path) -> Layout:
    """Find the files of a deployed model.

    Of a folder, the graph is the one that genai_config.json names, else the only spliced one in the folder or in its
    `onnx/`, else model.onnx, else the only one. No weights are read.

    Args:
        path: a folder, a graph `.onnx`, or `hf://owner/name[/folder or graph][@revision]`.

    Raises:
        FileNotFoundError: there is no such path, or no graph in the folder.
        ValueError: several graphs could be meant, a graph or a JSON file is damaged, or a file is a link out of its
            folder.

    >>> layout = read_layout(host_path)
    >>> layout.graph.name, layout.splices, layout.features
    ('host.onnx', {}, None)
    """
    is_remote = isinstance(path, str) and path.startswith(SCHEME)
    found = fetch_model(str(path), lambda folder: _graph_of(folder)[0]) if is_remote else local(path)
    graph, metadata = _graph_of(found)
    refuse_link_out(graph, graph.parent)
    splices = read_splices(metadata)
    home = tokenizer_home(graph)
    features, stale = _features_of(graph)
    bundles = {name: folder for name, spliced in splices.items() if (folder := _bundle_of(graph, spliced)) is not None}
    unused = {name: fault for name, folder in bundles.items() if (fault := _fault(folder, graph, splices[name]))}
    return Layout(
        graph=graph,
        features=features,
        home=home,
        splices=splices,
        bundles={name: folder for name, folder in bundles.items() if name not in unused},
        unused=unused,
        config=_json(CONFIG, home, graph.parent),
        genai=_json(GENAI, graph.parent, home),
        sentence=read_sentence(home),
        notes=(*stale, *_spliced_beside(graph, found, splices), *unused.values()),
    )


def _graph_of(path: Path) -> tuple[Path, dict[str, str]]:
    """The graph that a path means, with its metadata."""
    if path.is_file():
        if path.suffix != ".onnx":
            raise ValueError(f"{path} is not a graph, .onnx; name a graph, or the folder of a model")
        return path, _whole(path)
    if (path / MANIFEST).is_file():
        raise ValueError(f"{path} is a bundle, an SAE alone; splice it into a host model, or open it with load")
    if (name := named_by_genai(path, required=False)) is not None:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing, which {path / GENAI} names; make the model again")
        return path / name, _whole(path / name)
    graphs = {graph: metadata for graph, metadata in _graphs_in(path) if CUT_OF not in metadata}
    spliced = [graph for graph, metadata in graphs.items() if read_splices(metadata)]
    usual = [graph for graph in graphs if graph.name == _USUAL]
    chosen = spliced or usual[:1] or list(graphs)
    if not chosen:
        raise FileNotFoundError(f"{path} holds no graph, .onnx, and nor does {path / INSIDE}; name a model's folder")
    if len(chosen) > 1:
        raise ValueError(f"{path} holds {len(chosen)} {'spliced ' * bool(spliced)}graphs, {_listed(chosen)}; name one")
    return chosen[0], _whole(chosen[0])


def _whole(graph: Path) -> dict[str, str]:
    """The metadata of a graph that somebody named, which must not be a cut one."""
    metadata = read_metadata(graph)
    if CUT_OF in metadata:
        raise ValueError(f"{graph} is the part of a graph that gives features; name the whole graph beside it")
    return metadata


def _graphs_in(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The graphs in a folder and in its `onnx/`, with their metadata."""
    for home in (folder, folder / INSIDE):
        for graph in sorted(home.glob("[!.]*.onnx")) if home.is_dir() else ():
            if graph.is_file():
                refuse_link_out(graph, folder)
                try:
                    yield graph, read_metadata(graph)
                except ValueError:  # a damaged variant beside the graph that is meant; if it is meant, `_whole` says so
                    yield graph, {}


def _features_of(graph: Path) -> tuple[Path | None, Sequence[str]]:
    """The cut graph of a graph, or a sentence on one that is another graph's."""
    cut = cut_graph(graph)
    if not cut.is_file() or leaves(cut, graph.parent):
        return None, ()
    try:
        known = read_metadata(cut).get(CUT_OF)
    except ValueError:
        return None, (f"{cut} is no readable graph, so features run the whole one; splice the host again",)
    if known is None:
        return None, ()
    if known != record(graph).sha256:
        return None, (
            f"{cut} was cut of another graph than {graph}, so features run the whole graph; splice the host again",
        )
    return cut, ()


def _spliced_beside(graph: Path, found: Path, splices: Mapping[str, Spliced]) -> Sequence[str]:
    """A sentence on spliced graphs of a folder whose configuration names a graph without SAEs."""
    if splices or graph == found:
        return ()
    others = [one for one, metadata in _graphs_in(found) if CUT_OF not in metadata and read_splices(metadata)]
    if not others:
        return ()
    return (f"{found / GENAI} names {graph.name}, which has no SAE; name {_listed(others)} for the SAEs in it",)


def _bundle_of(graph: Path, spliced: Spliced) -> Path | None:
    """The folder of an SAE's bundle, if the graph names one and a bundle is there."""
    inside = Path(spliced.bundle or "..")
    folder = graph.parent / inside
    if inside.is_absolute() or ".." in inside.parts or not (folder / MANIFEST).is_file():
        return None
    return folder


def _fault(folder: Path, graph: Path, spliced: Spliced) -> str:
    """Why the bundle in a folder is not used; "" if it is the one that was put in."""
    if leaves(folder / MANIFEST, graph.parent):
        return f"{folder} is not used, since it leads out of the model's folder; copy it there"
    try:
        files = read_manifest(folder).files
    except ValueError as error:
        return f"{folder} is not used, since it is no sound bundle ({error})"
    if WEIGHTS not in files or files[WEIGHTS].sha256 != spliced.weights:
        return (
            f"{folder} is not used, since it is not the SAE that {graph} has as {spliced.name}; splice the host again"
        )
    return ""


def _json(name: str, *folders: Path) -> dict[str, Any]:
    """The object of a JSON file in the first folder that has it; {} where none has."""
    for folder in folders:
        if (folder / name).is_file():
            refuse_link_out(folder / name, folder)
            found: dict[str, Any] = read_file(dict[str, Any], folder / name, foreign=True)
            return found
    return {}


def _listed(graphs: Sequence[Path]) -> str:
    shown = ", ".join(graph.name if graph.parent.name != INSIDE else f"{INSIDE}/{graph.name}" for graph in graphs[:5])
    return shown + ", ..." * (len(graphs) > 5)
