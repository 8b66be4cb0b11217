"""What of a folder is published: the files of its bundles and of its deployed model, each checked, and nothing else."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.card import card
from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.graphs import ENCODERS
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.labels import read_labels
from sae_runtime.bundle.licences import LICENCE, licence_of
from sae_runtime.bundle.manifest import FileRecord, GraphRecord, Manifest
from sae_runtime.bundle.model_card import BESIDE, HOST_CARD, model_card
from sae_runtime.bundle.model_files import TOKENIZER, model_files
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.bundle.sealed import CARD, LARGEST_CARD, is_ours
from sae_runtime.bundle.splices import check_weights
from sae_runtime.deployed.layout import read_layout
from sae_runtime.publishing.index_card import index_card

_PLACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is published.

    Attributes:
        kind: "bundle", "bundles" or "model".
        files: the files by their paths in the repository, without its model cards.
        sha256: of these files, as they were checked.
        cards: the texts of model cards, likewise; `push` puts the names of the repository into them.
        bundles: the paths of the bundles in the repository, "" for its root, with their manifests.
        graph: the graph that was named, where a model was named by its graph; else "".
    """

    kind: str
    files: dict[str, Path] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    cards: dict[str, str] = field(default_factory=dict)
    bundles: dict[str, Manifest] = field(default_factory=dict)
    graph: str = ""


def chosen(path: Path) -> Chosen:
    """Check a bundle, a folder of bundles or a deployed model as `load` and `load_model` do, and choose its files.

    >>> made = chosen(Path(bundle_path))
    >>> made.kind, sorted(made.cards), "encode.onnx" in made.files
    ('bundle', ['README.md'], True)

    Raises:
        FileNotFoundError: there is nothing at the path, or a file of it is missing.
        ValueError: it is nothing that can be published, a file is damaged or altered or leads out of its folder, or a
            bundle has no graphs yet.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a bundle, a folder of bundles or a deployed model")
    if path.suffix == ".onnx" or not (path / bundles.MANIFEST).is_file() and any(_graphs_in(path)):
        return _model(path)
    if (path / bundles.MANIFEST).is_file():
        made = Chosen(kind="bundle")
        _add_bundle(made, path, "")
        return made
    inner = sorted(file.parent for file in path.glob(f"[!.]*/{bundles.MANIFEST}")) if path.is_dir() else []
    if not inner:
        raise ValueError(f"{path} is no bundle, folder of bundles or deployed model; name what train or splice wrote")
    made = Chosen(kind="bundles")
    for folder in inner:
        _add_bundle(made, folder, f"{folder.name}/")
    text = _card_in(path)
    made.cards[CARD] = index_card(made.bundles) if text is None or is_ours(text) else text
    return made


def _add_bundle(made: Chosen, folder: Path, prefix: str) -> None:
    if prefix:
        check_place(prefix.rstrip("/"), str(folder))
    bundle = bundles.read(folder)
    if not set(ENCODERS) & bundle.manifest.graphs.keys():
        raise ValueError(f"{folder} has no graphs yet, so nobody could load it; run: sae-runtime export {folder}")
    for name in bundle.manifest.graphs:
        bundle.graph(name)
    read_labels(folder, bundle.manifest.architecture.d_sae)
    listed: dict[str, FileRecord | GraphRecord] = {**bundle.manifest.files, **bundle.manifest.graphs}
    beside = [name for name in (LABELS, LICENCE) if (folder / name).is_file()]
    for name in (bundles.MANIFEST, *listed, *beside):
        refuse_link_out(folder / name, folder)
        made.files[prefix + name] = folder / name
        made.sha256[prefix + name] = listed[name].sha256 if name in listed else bundles.record(folder / name).sha256
    made.bundles[prefix.rstrip("/")] = bundle.manifest
    # A card of an older export is written afresh; one that a person edited is sent as it is.
    text = _card_in(folder)
    made.cards[prefix + CARD] = card(bundle.manifest) if text is None or is_ours(text) else text


def _model(path: Path) -> Chosen:
    layout = read_layout(path)
    if not layout.splices:
        raise ValueError(f"{layout.graph} has no SAE in it; put one in: sae-runtime splice {layout.graph} --sae BUNDLE")
    home = layout.graph.parent
    root = layout.home if home.is_relative_to(layout.home) else home
    graph = layout.graph.relative_to(root).as_posix() if path.suffix == ".onnx" else ""
    made = Chosen(kind="model", graph=graph)
    for spliced in layout.splices.values():
        check_weights(layout.graph, spliced)
    graphs = [file for file in (layout.graph, layout.features) if file is not None]
    external = [file for one in graphs for file in check_external(one)]
    texts = [folder / name for folder in dict.fromkeys((root, home)) for name in model_files(folder)]
    for file in dict.fromkeys((*graphs, *external, *texts)):
        refuse_link_out(file, root)
        name = file.relative_to(root).as_posix()
        if name not in (CARD, HOST_CARD):
            made.files[name] = file
            made.sha256[name] = bundles.record(file).sha256
    manifests = {}
    for name, folder in layout.bundles.items():
        _add_bundle(made, folder, f"{folder.relative_to(root).as_posix()}/")
        manifests[name] = made.bundles[folder.relative_to(root).as_posix()]
    ours, theirs = _card_in(root, BESIDE), _card_in(root)
    if ours is None and theirs is not None and is_ours(theirs):
        ours, theirs = theirs, _card_in(root, HOST_CARD)
    if ours is None or is_ours(ours):  # afresh: one of ours may name the repository that it came from
        tokenizer, licence = (layout.home / TOKENIZER).is_file(), licence_of(root)
        ours = model_card(layout.splices, manifests, graph=layout.graph.name, tokenizer=tokenizer, licence=licence)
    made.cards[CARD] = ours
    if theirs is not None:
        made.cards[HOST_CARD] = theirs
    return made


def _card_in(folder: Path, name: str = CARD) -> str | None:
    """The text of a card; None if there is none.

    Raises:
        ValueError: it leads out of the folder, or is no text of at most a megabyte.
    """
    if not (folder / name).is_file():
        return None
    refuse_link_out(folder / name, folder)
    try:
        return read_bytes(folder / name, most=LARGEST_CARD).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / name} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def check_place(name: str, what: str) -> None:
    """Raise ValueError if a folder's name cannot stand in a reference `hf://owner/name/folder`.

    >>> check_place("h@1", "saes/h@1")
    Traceback (most recent call last):
    ValueError: saes/h@1 has a name that no reference can have; name it with letters, digits, _, . and - alone
    """
    if not _PLACE.fullmatch(name) or ".." in name or name.endswith(".onnx"):
        raise ValueError(
            f"{what} has a name that no reference can have; name it with letters, digits, _, . and - alone"
        )


def _graphs_in(path: Path) -> Iterator[Path]:
    yield from path.glob("[!.]*.onnx")
    yield from path.glob("onnx/[!.]*.onnx")
