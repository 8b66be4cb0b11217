"""The metadata of a spliced graph: which SAEs are inside it, and the names of their inputs and outputs."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_runtime.bundle.external_data import located
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.opened import BundleError
from sae_runtime.bundle.parts import record
from sae_runtime.bundle.typed_json import read_json

KEY = "sae_runtime.splice."  # the name of the splice follows
CUT_OF = "sae_runtime.cut_of"  # of a cut graph: the sha256 of the whole one


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """One SAE inside a graph, as the graph's metadata describe it under `sae_runtime.splice.NAME`.

    Attributes:
        name: of the splice; it begins the names of the splice's inputs and outputs.
        hook: where the activation is in the host model.
        tensor: the graph's name of the activation before editing.
        inputs: names of the optional inputs that the splice adds to the graph.
        outputs: names of the outputs that it adds.
        replace: whether the reconstruction takes the activation's place.
        d_in: numbers in an activation.
        d_sae: number of features.
        weights: sha256 of the SAE's weights.
        file: path of these weights from the graph's folder, with "/"; None: an older graph, which does not tell.
        slots: the slots to ask for, by which hardly a token lacks features; None: an older graph, which reads unasked.
        bundle: folder of the SAE's bundle from the graph's folder, with "/"; None: it is not there.
    """

    name: str
    hook: str
    tensor: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    replace: bool
    d_in: int
    d_sae: int
    weights: str
    slots: int | None = None
    file: str | None = None
    bundle: str | None = None

    @property
    def reads_bundle(self) -> bool:
        """Whether the graph reads the weights in the bundle's folder, which then must stay as it is."""
        return self.file is not None and self.bundle is not None and self.file.startswith(f"{self.bundle}/")

    def to_metadata(self) -> dict[str, str]:
        """The entry of the graph's metadata, which `read_splices` reads back."""
        return {KEY + self.name: json.dumps(asdict(self))}


def read_splices(metadata: Mapping[str, str]) -> dict[str, Spliced]:
    """The SAEs inside a graph, by name.

    Args:
        metadata: all metadata of the graph; other entries are ignored. onnxruntime gives them as
            `session.get_modelmeta().custom_metadata_map`.

    Raises:
        ValueError: an entry under `sae_runtime.splice.` does not describe a splice.

    >>> sae = Spliced(name="sae", hook="h.3", tensor="add_7", inputs=("sae_slots",), outputs=("sae_values",),
    ...               replace=False, d_in=24, d_sae=150, weights="9f86d081")
    >>> read_splices({"license": "MIT"} | sae.to_metadata())["sae"].hook
    'h.3'
    """
    splices = {}
    for key, text in metadata.items():
        if not key.startswith(KEY):
            continue
        try:
            spliced: Spliced = read_json(Spliced, text, key)
            if KEY + spliced.name != key:
                raise ValueError(f"{key}.name is {spliced.name!r}")
        except ValueError as error:
            raise ValueError(f"{key} does not describe a splice ({error}); splice the host model again") from error
        splices[spliced.name] = spliced
    return splices


def cut_graph(graph: Path) -> Path:
    """Where the part of a spliced graph is that gives its features: everything up to the last hook that is read.

    >>> print(cut_graph(Path("model/model.onnx")), cut_graph(Path("model/host_sae.onnx")))
    model/features.onnx model/host_sae_features.onnx
    """
    return graph.with_name("features.onnx" if graph.stem == "model" else f"{graph.stem}_features.onnx")


def reader_of(bundle: Path) -> Path | None:
    """The spliced graph beside a bundle's folder that reads the bundle's files where they are; None if none does.

    >>> reader_of(Path(bundle_path))
    """
    real = Path(os.path.realpath(bundle))
    homes = dict.fromkeys((bundle.absolute().parent, real.parent))  # a link may lead to the bundle from elsewhere
    for graph in (graph for home in homes for graph in sorted(home.glob("[!.]*.onnx"))):
        with suppress(OSError, ValueError):  # what is no graph reads nothing
            metadata = read_metadata(graph)
            read = [one.bundle for one in read_splices(metadata).values() if one.reads_bundle and one.bundle]
            if CUT_OF not in metadata and any(os.path.realpath(graph.parent / name) == str(real) for name in read):
                return graph
    return None


def check_weights(graph: Path, spliced: Spliced) -> None:
    """Check that the weights which a spliced graph reads are those of the SAE that was put in.

    A bundle that was fitted again in its place, and a file that was replaced, would change features without a word.
    Nothing is checked of an older graph, whose metadata do not name the file.

    >>> from sae_runtime.bundle.graph_reader import read_metadata
    >>> for spliced in read_splices(read_metadata(Path(host_path))).values():
    ...     check_weights(Path(host_path), spliced)

    Args:
        graph: the spliced graph, in the folder of its weights.
        spliced: one of its SAEs.

    Raises:
        BundleError: the file holds something else.
        FileNotFoundError: the file is missing.
        ValueError: the file is not in the folder of the graph.
    """
    if spliced.file is None:
        return
    try:
        path = located(graph, spliced.file)
    except FileNotFoundError as error:
        missing = graph.parent / spliced.file
        raise FileNotFoundError(
            f"{missing} is missing, which {graph} reads as {spliced.name}; splice the host again"
        ) from error
    if record(path).sha256 != spliced.weights:
        raise BundleError(
            f"{path} is not the file that {graph} was spliced with as {spliced.name}: the SAE was fitted again or "
            "replaced; splice the host again"
        )
