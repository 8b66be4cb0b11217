"""Put SAEs into a host model's own ONNX graph, which then gives features and takes edits on any server.

The weights of the host model stay in its data file, to which the spliced graph refers. The weights of the SAE are read
from a copy, since a bundle may be fitted again. The graph gains only optional inputs, so a program that does not know
them sees the same model.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.external_data import located
from sae_runtime.bundle.folder import DERIVED, MANIFEST, WEIGHTS, Bundle, BundleChanged, BundleError
from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.bundle.hub import local
from sae_runtime.bundle.licences import licence_of
from sae_runtime.bundle.model_card import model_card
from sae_runtime.bundle.model_files import TOKENIZER, tokenizer_home
from sae_runtime.bundle.splices import Spliced, check_weights, cut_graph, read_splices
from sae_runtime.bundle.tensors import TensorSpec, read_header
from sae_runtime.engine.sessions import open_session, refuse_other_bytes
from sae_runtime.exports.splice.first_run import first_run
from sae_runtime.exports.splice.head import Head
from sae_runtime.exports.splice.host_graph import read_host, refuse_inside
from sae_runtime.exports.splice.insert import insert_graph
from sae_runtime.exports.splice.merge import merge
from sae_runtime.exports.splice.placement import (
    How,
    Placement,
    bundle_in,
    graph_path,
    locate_weights,
    place_bundle,
    place_card,
    place_model_files,
)
from sae_runtime.exports.splice.plausibility import doubts
from sae_runtime.exports.splice.promoted import head_of, with_logits
from sae_runtime.exports.splice.same_place import find_place
from sae_runtime.exports.splice.writing import write_spliced

_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True, kw_only=True)
class Splice:
    """One SAE to put at one hook of a host model.

    `bundle` is a path, the name of a ready SAE, or an `hf://` reference.

    >>> Splice(bundle=Path("sae"), hook="encoder.layer.3", name="files").edit
    True
    """

    bundle: str | Path
    hook: str | None = None  # a text that `parse_hook` reads; None: the hook of the bundle
    name: str = "sae"  # its inputs and outputs begin with it
    read: bool = True  # give features
    edit: bool = True  # take edits
    replace: bool = False  # take edits of the reconstruction, which replaces the activation
    required: bool = False  # no input has a default: onnxruntime-genai, for one, feeds no input that has


@dataclass(frozen=True, kw_only=True)
class SplicedGraph:
    """A graph that was written.

    Attributes:
        path: the graph.
        splices: the SAEs that were put in.
        files: the files that it reads, by their path from its folder.
        features: the graph of its part that gives features; None if no SAE is read.
        beside: what else was copied into the folder: tokenizer, configuration, bundles.
        logits: of each SAE by name, why its bundle there does not know the tokens that its features promote; None: it
            knows them.
        warnings: sentences about what the graph does, and about what could not be checked.
    """

    path: Path
    splices: tuple[Spliced, ...]
    files: dict[str, How]
    features: Path | None = None
    beside: tuple[str, ...] = ()
    logits: Mapping[str, str | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what could not be checked, and places that look like those of another hook


def splice(
    host: str | Path,
    saes: str | Path | Splice | Sequence[str | Path | Splice],
    out: str | Path | None = None,
    *,
    logits: bool = True,
    force: bool = False,
    progress: bool = False,
) -> SplicedGraph:
    """Write a host graph with SAEs in it.

    A host of an opset below 18 is converted, and its outputs are compared with the original's on made-up inputs.

    The graph refers to the host's weights at or below its folder where they are. Other weights, and those of bundles,
    are copied into the folder, unless equal files lie there already. Another folder than the host's also gets the
    tokenizer, the configuration and the like, and becomes a deployed model. Bundles that are not below the folder are
    copied into it. Beside the graph stands its part that gives features, if an SAE is read. The stats of a copy get the
    tokens that each feature promotes and suppresses most, where the host has a head of float weights: see `head.py`.

    >>> one = Splice(bundle=bundle_path, hook="encoder.layer.0")
    >>> made = splice(host_path, one, Path(host_path).parent / "spliced")
    >>> made.path.name, made.splices[0].outputs
    ('model.onnx', ('sae_indices', 'sae_values'))

    Args:
        host: the graph of the host model, `.onnx`, not optimised; it may have SAEs in it already.
        saes: bundles, each as a path, the name of a ready SAE, an `hf://` reference, or a `Splice` that says where it
            goes and what it does. One of them, or a list; those of a list have names of their own.
        out: the graph, `.onnx`, or a folder, where it becomes `model.onnx`, or what a `genai_config.json` beside the
            host names; None: HOST_sae.onnx in the host's folder.
        logits: find the tokens that features promote; it takes d_sae d vocabulary products.
        force: replace files that exist.
        progress: show the progress of that on stderr.

    Raises:
        BundleError: a bundle cannot be trusted, or an SAE that is in the host already has other weights than it had.
        FileExistsError: another file has the path of one that has to be written, and `force` is not set.
        FileNotFoundError: the host, a file that it needs, or a bundle is missing.
        ValueError: the host cannot be spliced, or a hook or a name does not fit; nothing is written.
    """
    host = Path(host)
    splices = [dataclasses.replace(one, bundle=local(one.bundle)) for one in _as_splices(saes)]
    path = graph_path(host, out)
    for graph in (host, path):
        refuse_other_bytes(graph)
    files.check_free(path, force=force, kind="file")
    if os.path.realpath(cut_graph(path)) == os.path.realpath(host):
        raise ValueError(f"{host} has the name of the part of the new graph that gives features; name another --output")
    read = read_host(host)
    model, placement = read.model, Placement(path.parent)
    if not splices:
        raise ValueError("there is nothing to splice; name a bundle")
    for earlier in read_splices(model.metadata_props).values():
        check_weights(host, earlier)
    heads: dict[str, Head | str] = {}
    placed = {wanted.name: _splice(host, model, wanted, heads) for wanted in splices}
    made = read_splices(model.metadata_props)
    bundled = placed | _bundles_of(host, [one for name, one in made.items() if name not in placed])
    if not logits:
        heads = dict.fromkeys(heads, "they were not asked for")
    with tempfile.TemporaryDirectory() as scratch:
        instead, absent = with_logits(placed, heads, placement.folder, Path(scratch), progress=progress)
        homes, read_there = _place_bundles(bundled, made, placement, instead)
        moved = locate_weights(
            model, placement, set(made), {n: bundle.path for n, bundle in placed.items()}, read_there
        )
        for name, one in made.items():
            file = moved.get((name, one.file or ""), one.file)
            made[name] = dataclasses.replace(one, file=file, bundle=homes.get(name))
            model.metadata_props.update(made[name].to_metadata())
        reads = {name: placement.how[name] for name in moved.values()}
        place_model_files(host, path, placement)
        place_card(host, path, placement, _card(host, path, made, bundled), Path(scratch), force=force)
        warnings = list(read.warnings)

        def check(graph: Path, part: Path | None) -> None:
            for bundle in bundled.values():  # the files that were copied
                bundle.refuse_change(MANIFEST, *bundle.checked)
            replaced = any(one.replace for one in made.values())
            unclear = first_run(
                host, graph, converted_from=read.opset if read.is_converted else None, replaced=replaced
            )
            warnings.extend(unclear or doubts(graph, host, [(made[name], one) for name, one in placed.items()]))
            if part is not None and not unclear:
                open_session(part)

        features = write_spliced(model, path, placement, check, force=force)
        return SplicedGraph(
            path=path,
            splices=tuple(made[wanted.name] for wanted in splices),
            files=reads,
            features=features,
            beside=tuple(name for name, how in placement.how.items() if how == "copied" and name not in reads),
            logits=absent,
            warnings=tuple(warnings),
        )


def _as_splices(saes: str | Path | Splice | Sequence[str | Path | Splice]) -> list[Splice]:
    each = [saes] if isinstance(saes, str | Path | Splice) else saes
    return [one if isinstance(one, Splice) else Splice(bundle=one) for one in each]


def _card(host: Path, path: Path, made: Mapping[str, Spliced], bundled: Mapping[str, Bundle]) -> str:
    """The model card of the folder."""
    above = tokenizer_home(host)
    return model_card(
        made,
        {name: bundle.manifest for name, bundle in bundled.items()},
        graph=path.name,
        tokenizer=(above / TOKENIZER).is_file(),
        licence=licence_of(host.parent, above),
    )


def _place_bundles(
    bundled: Mapping[str, Bundle],
    made: Mapping[str, Spliced],
    placement: Placement,
    instead: Mapping[str, Mapping[str, Path]],
) -> tuple[dict[str, str], dict[str, str]]:
    """The path of each bundle from the folder, and the paths of those whose weights the graph reads where they are.

    These are copies that a splice made. Of a bundle that lies there, whose owner may replace it, it copies the weights.
    """
    homes, read_there = {}, {}
    for name, bundle in bundled.items():
        inside = bundle_in(placement.folder, bundle.path)
        # Right beside the graph, where `refuse_deployed` finds that it is read.
        homes[name] = inside or place_bundle(bundle, Path(made[name].bundle or name).name, placement, instead.get(name))
        if inside is None:
            read_there[name] = homes[name]
        elif made[name].reads_bundle and "/" not in inside:
            read_there[name] = inside
            for file in {WEIGHTS, DERIVED} & bundle.manifest.files.keys():
                placement.place(bundle.path / file, f"{inside}/{file}", inside=True)
    return homes, read_there


def _bundles_of(host: Path, splices: Sequence[Spliced]) -> dict[str, Bundle]:
    """The bundles of the SAEs that a host has already, where they are still those that were put in."""
    found = {}
    for spliced in splices:
        with suppress(OSError, ValueError):  # without its bundle, the SAE works all the same
            bundle = bundles.read(located(host, f"{spliced.bundle}/{MANIFEST}").parent)
            if bundle.manifest.files[WEIGHTS].sha256 == spliced.weights:
                found[spliced.name] = bundle
    return found


def _splice(host: Path, model: ir.Model, wanted: Splice, heads: dict[str, Head | str]) -> Bundle:
    """Put one SAE into the model in memory; the metadata describe it. Gives its bundle, and its head in `heads`."""
    bundle = bundles.read(Path(wanted.bundle))
    text = wanted.hook or bundle.manifest.hook
    if text is None:
        raise ValueError(f"{wanted.bundle} does not say where it belongs; name a hook")
    if not (wanted.read or wanted.edit or wanted.replace):
        raise ValueError("a splice that neither reads nor edits does nothing; ask for one of them")
    _check_name(model.graph, wanted.name)
    architecture = bundle.manifest.architecture
    if architecture.d_out is not None and (wanted.edit or wanted.replace):
        raise ValueError(f"{wanted.bundle} is a transcoder, whose features cannot edit its input; only read")
    hook = parse_hook(text)
    refuse_inside(host, model.graph, hook)
    value = find_place(model, hook, architecture.d_in)
    assert value.dtype is not None  # find_hook gives activations only
    heads[wanted.name] = head_of(model, bundle, value)
    parts = {"read": wanted.read, "edit": wanted.edit, "replace": wanted.replace}
    graph = insert_graph(bundle, value.dtype, **parts, specs=_derived(bundle)).graph
    part = merge(model.graph, graph, value, wanted.name, required=wanted.required)
    spliced = Spliced(
        name=wanted.name,
        hook=str(hook),
        tensor=value.name or "",
        inputs=tuple(str(value.name) for value in part.inputs),
        outputs=tuple(str(value.name) for value in part.outputs),
        replace=wanted.replace,
        d_in=architecture.d_in,
        d_sae=architecture.d_sae,
        weights=bundle.manifest.files[WEIGHTS].sha256,
        slots=bundle.manifest.slots if wanted.read else 0,
        file=WEIGHTS,
    )
    model.metadata_props.update(spliced.to_metadata())
    return bundle


def _check_name(graph: ir.Graph, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a splice's name is letters, digits and _, got {name!r}")
    names = {value.name or "" for value in (*graph.inputs, *graph.initializers.values())}
    names |= {value.name or "" for node in graph for value in node.outputs}
    if clash := sorted(other for other in names if other.startswith((f"{name}_", f"{name}/"))):
        raise ValueError(f"the graph has a tensor {clash[0]} already; give this splice a name other than {name}")


def _derived(bundle: Bundle) -> Mapping[str, TensorSpec]:
    """The arrays of the derived weights, or none where the file is missing or is not the one that export wrote."""
    if DERIVED not in bundle.manifest.files:
        return {}
    try:
        with bundle.unchanged(DERIVED):
            return read_header(bundle.path / DERIVED)
    except BundleChanged:
        raise
    except BundleError:
        return {}
