"""A deployed model of the Hugging Face Hub: the files that it needs, and nothing that could run code when read."""

import glob
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from sae_runtime.bundle import manifest
from sae_runtime.bundle.external_data import external_files
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.hub import download, parsed
from sae_runtime.bundle.model_files import PATTERNS, TOKENIZER, modules, tokenizer_home
from sae_runtime.bundle.splices import cut_graph, read_splices
from sae_runtime.bundle.typed_json import shown

INSIDE = "onnx"  # where optimum, sentence-transformers and transformers.js keep graphs, below the tokenizer
# Repositories keep many variants of a model in `onnx/`; the usual one is fetched, and those that splice wrote.
_INSIDE = [f"{INSIDE}/{name}" for name in ("model.onnx", "features.onnx", "*_sae.onnx", "*_features.onnx")]
_OF_BUNDLE = (manifest.FILE, "cfg.json", "*.safetensors", "*.onnx", "labels.jsonl", "README.md", "LICENSE")


def fetch_model(reference: str, choose: Callable[[Path], Path]) -> Path:
    """Fetch a deployed model if the cache lacks it, and give the path of its folder, or of the graph that is named.

    Args:
        reference: `hf://owner/name[/folder or graph][@revision]`.
        choose: gives the graph of a folder.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the Hub has no such model, or does not answer.
        ValueError: the reference has another form, or the graph reads files outside of its folder.

    >>> fetch_model("hf://owner", lambda folder: folder / "model.onnx")
    Traceback (most recent call last):
    ValueError: 'hf://owner' is not a reference to the Hub; write hf://owner/name[/folder][@revision]
    """
    repository, inside, revision = parsed(reference)

    def get(folder: PurePosixPath, names: Iterable[str], *, inner: bool = False) -> Path:
        prefix = "" if folder == PurePosixPath() else f"{glob.escape(str(folder))}/"
        ignored = () if inner else (f"{prefix}*/*",)  # `*` matches slashes
        return download(reference, repository, revision, [prefix + name for name in names], ignored)

    place = PurePosixPath(inside)
    is_graph = place.suffix == ".onnx"
    home = place.parent if is_graph else place
    graphs = [place.name, cut_graph(Path(place)).name] if is_graph else ["*.onnx"]
    snapshot = get(home, [*PATTERNS, *graphs])
    revision = snapshot.name  # the branch may move on meanwhile
    if not is_graph and not any((snapshot / home).glob("*.onnx")):
        get(home, _INSIDE, inner=True)
    graph = snapshot / place if is_graph else choose(snapshot / home)
    folder = PurePosixPath(graph.parent.relative_to(snapshot))
    if not (graph.parent / TOKENIZER).is_file() and folder != PurePosixPath():
        get(folder.parent, PATTERNS)
    tokenizer = tokenizer_home(graph)
    of_modules = [path.relative_to(tokenizer).as_posix() for _, path in modules(tokenizer)]
    configurations = [f"{_plain(path)}/config.json" for path in of_modules]
    get(PurePosixPath(tokenizer.relative_to(snapshot)), configurations, inner=True)
    read = {name for one in (graph, cut_graph(graph)) if one.is_file() for name in external_files(one)}
    splices = read_splices(read_metadata(graph)).values()
    bundles = [_plain(spliced.bundle) for spliced in splices if spliced.bundle is not None]
    names = [_plain(name) for name in read] + [f"{bundle}/{name}" for bundle in bundles for name in _OF_BUNDLE]
    if names:
        get(folder, names, inner=True)
    return snapshot / place


def _plain(path: str) -> str:
    """A path from a stranger's file as a pattern that matches it alone."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or set(path) & set("\0\\"):
        raise ValueError(f"the model names {shown(path)}, which is not in its folder; make it again")
    return glob.escape(path)
