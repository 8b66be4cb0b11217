"""A transformers model as an ONNX graph with dynamic batch and sequence, for a splice to start from.

torch's exporter writes the names of the modules on every node; they are what a hook is found by.
"""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime import files, sessions
from sae_runtime.exports.graph import OPSET

Arrays = dict[str, NDArray[Any]]
_KEPT = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")  # the rest holds paths of this machine
_TOLERANCE = 1e-3  # of the largest output: float32 sums in another order, through all layers


def export_host(model: Any, path: str | Path, *, cache: bool = True, force: bool = False) -> Path:
    """Write a model as an ONNX graph, its weights beside it in `<name>.data`, compared with torch before it is left.

    Every graph has the inputs input_ids and attention_mask, int64. A causal language model gives logits [b, t, vocab]
    and takes and gives keys and values, past_key_values.N.key and present.N.key [b, heads, past, width] and the same
    of value, so attention_mask is [b, past + t]; a prompt comes with a past of length 0. Positions follow from the
    mask, so padding on the left is harmless. Any other model gives last_hidden_state [b, t, d].

    Args:
        model: a transformers model, with its head where it is a causal language model; it computes in its own type.
        path: the graph to write, `.onnx`.
        cache: let a causal language model take and give keys and values; without, the mask is [b, t].
        force: replace what stands there.

    Raises:
        FileExistsError: a file stands there and `force` is not set.
        ImportError: onnxscript is not installed.
        ValueError: torch cannot export the model, or the graph disagrees with it (then nothing is written).
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    if path.suffix != ".onnx":
        raise ValueError(f"a graph's name ends in .onnx, got {path}")
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and tells in a page)
    except ImportError as error:
        raise ImportError("exporting a host needs onnxscript; run: pip install onnxscript") from error
    for file in (data, path):
        files.check_free(file, force=force)
    with _quiet(model):
        form = _Causal(model) if cache and model.get_output_embeddings() is not None else _Plain(model)
        exported = _exported(form)
        with contextlib.ExitStack() as renames:
            graph_file = renames.enter_context(files.new_file(path, force=force))
            data_file = renames.enter_context(files.new_file(data, force=force))  # renamed first, the graph last
            _save(exported, graph_file, data_file.name)
            session = sessions.open_session(graph_file)
            _check(form, session)
            _save(exported, graph_file, data.name, written=data_file)
            if force:
                path.unlink(missing_ok=True)  # an old graph must not stand beside new weights
    return path


class _Plain:
    """A model without keys and values: what goes in, what comes out, and how to call it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal = model.get_output_embeddings() is not None
        self.outputs = ["logits" if self.causal else "last_hidden_state"]
        self.layers: list[Any] = []
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def inputs(self, batch: int, time: int, past: int) -> dict[str, Any]:
        """Some ids and a mask with padding on the left of the first row, as torch tensors."""
        import torch

        size = self.model.config.get_text_config().vocab_size
        rng = np.random.default_rng(0)
        mask = torch.ones(batch, past + time, dtype=torch.int64)
        mask[0, : min(2, past + time - 1)] = 0
        return {"input_ids": torch.from_numpy(rng.integers(0, size, (batch, time))), "attention_mask": mask}

    def call(self, input_ids: Any, attention_mask: Any, past: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The outputs, in the order of `outputs`."""
        settings: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if self.causal and self._takes_positions:
            settings["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **settings)
        return (result.logits if self.causal else result.last_hidden_state,)

    def shapes(self) -> dict[str, Any]:
        """Which dimensions of the inputs vary."""
        from torch.export import Dim

        ids = {0: Dim("batch"), 1: Dim("sequence")}
        return {"input_ids": ids, "attention_mask": ids}


class _Causal(_Plain):
    """A causal language model with keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        import torch

        with torch.inference_mode():
            filled = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
        try:
            self.layers = [(layer.keys, layer.values) for layer in filled.layers]
            ranks = {tensor.ndim for pair in self.layers for tensor in pair}
        except AttributeError:
            ranks = set()
        if ranks != {4}:
            raise ValueError(
                f"{type(model).__name__} keeps no keys and values [b, heads, t, width] for each layer; "
                "export it without cache"
            )
        self.outputs += [f"present.{i}.{kind}" for i in range(len(self.layers)) for kind in ("key", "value")]

    def inputs(self, batch: int, time: int, past: int) -> dict[str, Any]:
        """The same, and random keys and values of a past."""
        import torch

        generator = torch.Generator().manual_seed(0)
        pairs = [
            tuple(torch.randn(batch, t.shape[1], past, t.shape[3], generator=generator).to(t.dtype) for t in pair)
            for pair in self.layers
        ]
        return super().inputs(batch, time, past) | {"past": pairs}

    def call(self, input_ids: Any, attention_mask: Any, past: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Logits, then keys and values of each layer."""
        from transformers import DynamicCache

        cache = DynamicCache(ddp_cache_data=[tuple(pair) for pair in past])
        settings: dict[str, Any] = {}
        if self._takes_positions:
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            settings["position_ids"] = positions[:, past[0][0].shape[2] :]
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **settings
        )
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)

    def shapes(self) -> dict[str, Any]:
        """The same; the length of the mask is that of the past and the ids."""
        from torch.export import Dim

        shapes = super().shapes()
        batch = shapes["input_ids"][0]
        pair = ({0: batch, 2: Dim("past")},) * 2
        shapes["attention_mask"] = {0: batch, 1: Dim.DYNAMIC}
        return shapes | {"past": [pair] * len(self.layers)}


def _names(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs by the names that they have in the graph."""
    named = {name: value for name, value in inputs.items() if name != "past"}
    for i, pair in enumerate(inputs.get("past", [])):
        named |= {f"past_key_values.{i}.key": pair[0], f"past_key_values.{i}.value": pair[1]}
    return named


def _exported(form: _Plain) -> ir.Model:
    import torch

    class Host(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = form.model

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            return form.call(*inputs)

    inputs = form.inputs(batch=2, time=5, past=3 if form.layers else 0)
    try:
        program = torch.onnx.export(
            Host().eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(_names(inputs)),
            output_names=form.outputs,
            dynamic_shapes=(tuple(form.shapes().values()),),  # of the one argument *inputs
            opset_version=OPSET,
        )
    except Exception as error:  # the exporter raises whatever the model's code meets
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise ValueError(
            f"torch cannot export {type(form.model).__name__} ({reason}); try a newer transformers"
        ) from error
    assert program is not None  # as it is with dynamo
    model = program.model
    for node in model.graph:
        for key in [key for key in node.metadata_props if key not in _KEPT]:
            del node.metadata_props[key]
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


def _save(model: ir.Model, path: Path, data: str, written: Path | None = None) -> None:
    """Write graph and data, or, where the data is written under another name already, the graph that refers to it."""
    if written is None:
        ir.save(model, path, external_data=data)
        return
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    onnx.save(proto, str(path))


def _check(form: _Plain, session: Any) -> None:
    """Raise ValueError unless the graph gives what torch gives, for a prompt and for a step after it."""
    import torch

    for time, past in ((7, 0), (1, 6)) if form.layers else ((7, 0),):
        inputs = form.inputs(batch=3, time=time, past=past)
        with torch.inference_mode():
            expected = form.call(**inputs)
        found = session.run(form.outputs, {name: tensor.numpy() for name, tensor in _names(inputs).items()})
        real = inputs["attention_mask"][:, past:].bool().numpy()  # what stands at padding means nothing
        for name, want, got in zip(form.outputs, expected, found, strict=True):
            a, b = (array.astype(np.float64) for array in (want.numpy(), got))
            if name in ("logits", "last_hidden_state"):
                a, b = a[real], b[real]
            error = float(np.abs(a - b).max(initial=0)) / max(float(np.abs(a).max(initial=0)), 1e-30)
            bound = _TOLERANCE if want.dtype == torch.float32 else 30 * _TOLERANCE
            if not error <= bound:
                raise ValueError(f"the graph's {name} is off by {error:.1e} of the largest; nothing was written")


@contextlib.contextmanager
def _quiet(model: Any) -> Iterator[None]:
    """Attention written out, which gives the plainest graph, and no chatter of the exporter."""
    before, logger = model.config._attn_implementation, logging.getLogger("torch.onnx")
    level = logger.level
    model.set_attn_implementation("eager")
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        model.set_attn_implementation(before)
