"""Which models a repository of Triton gets of a bundle or a deployed model, and what each is made of.

A bundle gives models of the ONNX backend, NAME.encode_onnx, decode_onnx, steer_onnx and steer_batched_onnx, which are
its graphs as they are, and models of the Python backend, which answer as every server of ours does: NAME.encode and
so on. A deployed model gives models of the Python backend alone, since texts become tokens there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_runtime.bundle.external_data import external_files
from sae_runtime.bundle.graphs import DECODE, ENCODE, STEER
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.model_files import model_files
from sae_runtime.bundle.parts import NAMES
from sae_runtime.deployed.layout import Layout
from sae_runtime.sae import SAE
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.guarding import Guards
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.policy import Policy
from sae_runtime.serve.triton.backend import PROGRAM as PROGRAM_TEXT
from sae_runtime.serve.triton.backend import policy_parameters
from sae_runtime.serve.triton.config import ConfigTensor, ModelConfig
from sae_runtime.serve.triton.repository import BACKENDS, GRAPH, PROGRAM, SERVED, Planned, Source
from sae_runtime.serve.triton.rules import Form, signature

ONNX, PYTHON = BACKENDS
_STEERS = ("steer_onnx", "steer_batched_onnx")
_BY_ROWS = ("encode", "decode")  # operations of which Triton may merge requests: a row of each tensor is a row of all

WithoutDefaults = Callable[[Path, Path], None]
"""Writes a copy of a graph that wants all its inputs, in the folder of its weights."""


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How models of a repository are made.

    Attributes:
        backends: which of `BACKENDS`.
        device: "CPU" or "GPU".
        instances: how often Triton loads each model.
        threads: of an operator; None: all cores.
        max_batch: rows up to which Triton merges requests; 0: it merges none.
        delay: microseconds for which a request waits for others.
        policy: bounds for edits. Graphs know none, so steer_onnx and steer_batched_onnx are left out where there are.
    """

    backends: tuple[str, ...] = BACKENDS
    device: str = "CPU"
    instances: int = 1
    threads: int | None = None
    max_batch: int = 4096
    delay: int = 500
    policy: Policy = field(default_factory=Policy)


def plan(
    loaded: Sequence[Loaded],
    options: TritonOptions,
    without_defaults: WithoutDefaults,
    operations: Sequence[str] = (),
) -> list[Planned]:
    """The models of a repository.

    Args:
        loaded: what it serves.
        options: of all models.
        without_defaults: makes the graph of steer_batched_onnx.
        operations: which are wanted, such as "encode" or "steer_onnx"; none: all.

    Raises:
        ValueError: nothing has a wanted operation, or the policy does not fit.
    """
    if options.policy.bounded and (free := [operation for operation in operations if operation in _STEERS]):
        raise ValueError(
            f"{free[0]} is a graph, which has no bounds for edits; name the operation steer, which the Python backend "
            "answers within them"
        )
    Guards(options.policy, loaded)
    bounds = policy_parameters(options.policy, {name for one in loaded for name in (one.name, *one.saes)})
    found: list[Planned] = []
    for one in loaded:
        if ONNX in options.backends and one.sae is not None:
            found += _of_onnx(one, one.sae, options, without_defaults)
        if PYTHON in options.backends:
            found += _of_python(one, options, bounds)
    known = {planned.config.name.rpartition(".")[2] for planned in found}
    for operation in operations:
        if operation not in known:
            raise ValueError(f"there is no operation {operation!r} here; name one of {', '.join(sorted(known))}")
    chosen = [one for one in found if not operations or one.config.name.rpartition(".")[2] in operations]
    if not chosen:
        raise ValueError("deployed models need the Python backend; add --backend python")
    return chosen


def _of_onnx(one: Loaded, sae: SAE, options: TritonOptions, without_defaults: WithoutDefaults) -> Iterator[Planned]:
    bundle = sae.folder
    threads = {} if options.threads is None else {"intra_op_thread_count": str(options.threads)}

    def planned(operation: str, graph: str, batched: bool, *, all_required: bool = False) -> Planned:
        form = signature(bundle / graph)
        takes = {**form.required, **(form.defaulted if all_required or not batched else {})}
        optional = () if all_required else tuple(form.defaulted)
        config = ModelConfig(
            name=f"{one.name}.{operation}",
            backend=ONNX,
            max_batch_size=options.max_batch if batched else 0,
            delay=options.delay if batched else None,
            inputs=_tensors(takes, batched, optional),
            outputs=_tensors(form.outputs, batched),
            device=options.device,
            instances=options.instances,
            parameters=threads,
        )
        weights = sorted(external_files(bundle / graph))
        content: dict[str, Source] = {f"{GRAPH}/{name}": bundle / name for name in weights}

        def required_graph(file: Path) -> None:
            plain = file.with_name("plain.onnx")
            plain.write_bytes((bundle / graph).read_bytes())
            without_defaults(plain, file)
            plain.unlink()

        content[f"{GRAPH}/{GRAPH}"] = required_graph if all_required else bundle / graph
        return Planned(config, one.version, content)

    batched = options.max_batch > 0
    yield planned("encode_onnx", ENCODE.file, batched)
    yield planned("decode_onnx", DECODE.file, batched)
    if STEER.fits(sae.manifest) and not options.policy.bounded:
        yield planned("steer_onnx", STEER.file, False)
        if batched:
            yield planned("steer_batched_onnx", STEER.file, True, all_required=True)


def _tensors(forms: Mapping[str, Form], batched: bool, optional: Sequence[str] = ()) -> tuple[ConfigTensor, ...]:
    """Tensors of a graph as a configuration declares them: a scalar has one number, and a batch no size of its own."""
    return tuple(
        ConfigTensor(name, datatype, (sizes[1:] if batched else sizes) or (1,), optional=name in optional)
        for name, (datatype, sizes) in forms.items()
    )


def _of_python(one: Loaded, options: TritonOptions, bounds: Mapping[str, str]) -> Iterator[Planned]:
    content, path = _served(one)
    plane = Plane([one], merge=False)
    try:
        known = [plane.metadata(listed.name) for listed in plane.index()]
    finally:
        plane.close()
    for operation in known:
        kind = operation.name.rpartition(".")[2]
        batched = options.max_batch > 0 and kind in _BY_ROWS
        # What is optional has a value for all rows, so a model whose requests are merged does not take it.
        takes = [tensor for tensor in operation.inputs if not (batched and tensor.optional)]
        tensors = [
            tuple(
                ConfigTensor(tensor.name, tensor.datatype, tensor.shape[batched:], tensor.optional) for tensor in some
            )
            for some in (takes, operation.outputs)
        ]
        parameters = {"operation": kind, "path": path}
        if any(tensor.name == "edits" for tensor in operation.inputs):
            parameters |= bounds
        parameters |= {} if options.threads is None else {"threads": str(options.threads)}
        config = ModelConfig(
            name=operation.name,
            backend=PYTHON,
            max_batch_size=options.max_batch if batched else 0,
            delay=options.delay if batched else None,
            inputs=tensors[0],
            outputs=tensors[1],
            device=options.device,
            instances=options.instances,
            parameters=parameters,
        )
        yield Planned(config, one.version, {**content, PROGRAM: PROGRAM_TEXT})


def _served(one: Loaded) -> tuple[dict[str, Source], str]:
    """The files of a bundle or a deployed model, and the path that opens it, both from the version's folder."""
    if one.sae is not None:
        return {f"{SERVED}/{name}": file for name, file in bundle_files(one.sae.folder).items()}, SERVED
    assert one.model is not None
    layout = one.model.layout
    found = deployed_files(layout)
    graph = layout.graph.absolute().relative_to(layout.home.absolute()).as_posix()
    return {f"{SERVED}/{name}": file for name, file in found.items()}, f"{SERVED}/{graph}"


def bundle_files(folder: Path) -> dict[str, Path]:
    """The files of a bundle that serving reads, by name; links of a Hub cache are followed when they are copied."""
    return {name: folder / name for name in sorted({*NAMES, LABELS}) if (folder / name).is_file()}


def deployed_files(layout: Layout) -> dict[str, Path]:
    """The files of a deployed model, by their paths from the folder of its tokenizer: no other graphs' weights."""
    home = layout.home.absolute()
    found = {name: home / name for name in model_files(home)}
    for graph in filter(None, (layout.graph, layout.features)):
        graph = graph.absolute()
        beside = {graph.name, *external_files(graph), *model_files(graph.parent)}
        inside = graph.parent.relative_to(home).as_posix()
        found |= {(Path(inside) / name).as_posix(): graph.parent / name for name in sorted(beside)}
    for bundle in layout.bundles.values():
        inside = bundle.absolute().relative_to(home).as_posix()
        found |= {f"{inside}/{name}": file for name, file in bundle_files(bundle.absolute()).items()}
    return found
