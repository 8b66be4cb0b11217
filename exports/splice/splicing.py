"""Put SAEs into a host model's own ONNX graph, which then gives features and takes edits on any server.

The weights of the host model stay in its data file, and the weights of the SAE in the bundle; the spliced graph refers
to both. The graph gains only optional inputs, so a program that does not know them sees the same model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.folder import DERIVED, WEIGHTS, Bundle, BundleError
from sae_runtime.bundle.hooks import Hook, parse_hook
from sae_runtime.bundle.splices import Spliced, read_splices
from sae_runtime.bundle.tensors import TensorSpec, read_header
from sae_runtime.engine import sessions
from sae_runtime.exports.splice.hook_tensor import find_hook
from sae_runtime.exports.splice.insert import insert_graph
from sae_runtime.exports.splice.merge import merge, nodes_of, put_back, take_out
from sae_runtime.exports.splice.placement import How, Placement
from sae_runtime.exports.splice.plausibility import doubts

OLDEST_OPSET, OLDEST_IR = 18, 8
# The inputs without defaults where a splice is `required`: onnxruntime-genai passes on no input that has a default.
REQUIRED = ("features", "scale", "shift", "low", "high", "gate", "direction")
_NAME = re.compile(r"[A-Za-z]\w*")
_GENAI = "genai_config.json"


@dataclass(frozen=True, kw_only=True)
class Splice:
    """One SAE to put at one hook of a host model.

    >>> Splice(bundle=Path("sae"), hook="encoder.layer.3", name="files").edit
    True
    """

    bundle: Path
    hook: str | None = None  # a text that `parse_hook` reads; None: the hook of the bundle
    name: str = "sae"  # its inputs and outputs begin with it
    read: bool = True  # give features
    edit: bool = True  # take edits
    replace: bool = False  # take edits of the reconstruction, which replaces the activation
    required: bool = False  # the inputs in REQUIRED have no defaults


@dataclass(frozen=True, kw_only=True)
class SplicedGraph:
    """A graph that was written, the SAEs inside it, and the files that it reads, by their path from its folder."""

    path: Path
    splices: tuple[Spliced, ...]
    files: dict[str, How]
    warnings: tuple[str, ...] = ()  # places whose activations look like those of another place


def splice(
    host: str | Path,
    splices: Sequence[Splice],
    out: str | Path | None = None,
    *,
    force: bool = False,
) -> SplicedGraph:
    """Write a host graph with SAEs in it.

    The graph refers to weights at or below its folder where they are; other weights are copied into the folder. A new
    folder also gets the files of onnxruntime-genai beside the host, if there is a `genai_config.json`.

    >>> one = Splice(bundle=bundle_path, hook="encoder.layer.0")
    >>> made = splice(host_path, [one], Path(host_path).parent / "spliced")
    >>> made.path.name, made.splices[0].outputs
    ('model.onnx', ('sae_indices', 'sae_values'))

    Args:
        host: the graph of the host model, `.onnx`, not optimised.
        splices: the SAEs with their hooks, outputs and inputs.
        out: a folder, where the graph becomes `model.onnx`, or the graph itself, `.onnx`; None: the host's folder.
        force: replace files that exist.

    Raises:
        BundleError: a bundle cannot be trusted.
        FileExistsError: a file exists and `force` is not set.
        FileNotFoundError: the host, or a file that it needs, is missing.
        ValueError: the host cannot be spliced, or a hook or a name does not fit; nothing is written.
    """
    host = Path(host)
    path = _graph_path(host, out)
    files.check_free(path, force=force)
    model = _read_host(host)
    placement = Placement(path.parent)
    spliced = tuple(_splice(model, wanted) for wanted in splices)
    if not spliced:
        raise ValueError("there is nothing to splice; name a bundle")
    _locate(model, placement, {wanted.name: Path(wanted.bundle) for wanted in splices})
    _locate_companions(host, path, placement)
    with placement.filled(force=force), files.new_file(path, force=force) as partial:
        ir.save(model, partial)
        try:
            sessions.open_session(partial)
        except BundleError as error:
            reason = " ".join(str(error.__cause__).split())
            raise ValueError(
                f"onnxruntime refuses {host} with the splice in it ({reason}); please report this"
            ) from error
        placed = [(one, bundles.read(wanted.bundle)) for one, wanted in zip(spliced, splices, strict=True)]
        warnings = doubts(partial, host, placed)
    return SplicedGraph(path=path, splices=spliced, files=dict(placement.how), warnings=warnings)


def _graph_path(host: Path, out: str | Path | None) -> Path:
    path = host.parent if out is None else Path(out)
    path = path if path.suffix == ".onnx" else path / "model.onnx"
    if path.resolve() == host.resolve():
        raise ValueError(f"{path} is the host itself; name another graph or folder with --output")
    return path


def _read_host(host: Path) -> ir.Model:
    if not host.is_file():
        raise FileNotFoundError(f"{host} does not exist; make a host graph: sae-runtime export-model")
    try:
        model = ir.load(host)
    except Exception as error:  # protobuf and onnx-ir raise whatever the bytes cause
        raise ValueError(f"{host} is not a readable ONNX graph ({error}); export it again") from error
    opset = model.graph.opset_imports.get("", 0)
    if opset < OLDEST_OPSET or model.ir_version < OLDEST_IR:
        raise ValueError(
            f"{host} has opset {opset} and IR version {model.ir_version}, a splice needs opset {OLDEST_OPSET} and IR "
            f"{OLDEST_IR} or later; export it again"
        )
    return model


def _splice(model: ir.Model, wanted: Splice) -> Spliced:
    """Put one SAE into the model in memory."""
    bundle = bundles.read(wanted.bundle)
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
    value = _place(model, hook, architecture.d_in)
    assert value.dtype is not None  # find_hook gives activations only
    parts = {"read": wanted.read, "edit": wanted.edit, "replace": wanted.replace}
    graph = insert_graph(bundle, value.dtype, **parts, specs=_derived(bundle)).graph
    part = merge(model.graph, graph, value, wanted.name, REQUIRED if wanted.required else ())
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
    )
    model.metadata_props.update(spliced.to_metadata())
    return spliced


def _place(model: ir.Model, hook: Hook, d_in: int) -> ir.Value:
    """The value that a hook names in the host, or what the last SAE that edits it there puts in its place.

    The hook is looked for in the host alone, so that SAEs inside it do not change what its modules read and give.
    """
    graph = model.graph
    inputs, outputs = [*graph.inputs], [*graph.outputs]
    position = {node: number for number, node in enumerate(graph)}
    inside = read_splices(model.metadata_props).values()
    in_order = sorted(inside, key=lambda one: min(position[node] for node in nodes_of(graph, one.name)))
    taken = [(one.name, *take_out(graph, one)) for one in reversed(in_order)]
    value = find_hook(graph, hook, d_in)
    for name, place, part in reversed(taken):
        put_back(graph, place, part, name)
        value = part.y if place is value and part.y is not None else value
    if taken:  # callers may know inputs and outputs by their order
        graph.inputs[:], graph.outputs[:] = inputs, outputs
    return value


def _check_name(graph: ir.Graph, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a splice's name is letters, digits and _, got {name!r}")
    names = {value.name or "" for value in (*graph.inputs, *graph.initializers.values())}
    names |= {value.name or "" for node in graph for value in node.outputs}
    if clash := sorted(other for other in names if other.startswith((f"{name}_", f"{name}/"))):
        raise ValueError(f"the graph has a tensor {clash[0]} already; give this splice a name other than {name}")


def _derived(bundle: Bundle) -> Mapping[str, TensorSpec]:
    """The arrays of the derived weights, or none where the file is missing or is not the one that export wrote."""
    record, path = bundle.manifest.files.get(DERIVED), bundle.path / DERIVED
    return read_header(path) if record and path.is_file() and bundles.record(path) == record else {}


def _locate(model: ir.Model, placement: Placement, homes: dict[str, Path]) -> None:
    """Let the graph refer to every external weight by a path from its new folder."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        name = (value.name or "").partition("/")[0]
        of_sae = name in homes and not tensor.base_dir  # the weights of an SAE have paths from its bundle
        base = homes[name] if of_sae else Path(tensor.base_dir)
        folder = PurePosixPath(tensor.location).parent  # of an SAE that the host has already
        below = name if of_sae else "" if ".." in folder.parts else folder.as_posix()
        location = placement.locate(base / tensor.location, below)
        value.const_value = ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=value.name or ""
        )


def _locate_companions(host: Path, path: Path, placement: Placement) -> None:
    """Copy tokenizer and configuration of onnxruntime-genai too, if the graph goes into another folder."""
    config = host.parent / _GENAI
    if not config.is_file() or path.parent.resolve() == host.parent.resolve():
        return
    named = json.loads(config.read_text())["model"]["decoder"]["filename"]
    if named != path.name:
        raise ValueError(f"{config} names its graph {named}; write the spliced one under that name, not {path.name}")
    for file in sorted(host.parent.iterdir()):
        if file.is_file() and file.suffix not in (".onnx", ".data"):
            placement.locate(file)
