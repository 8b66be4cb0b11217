"""A transformers model as an ONNX graph with dynamic batch and sequence, for a splice to start from.

torch's exporter writes the names of the modules on every node, and `splice` finds hooks by these names.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import files
from sae_runtime.engine import sessions
from sae_runtime.exports.graphs.external import relocate
from sae_runtime.exports.graphs.graph import OPSET
from sae_runtime.exports.splice.call_numbers import number_calls

_KEPT = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")  # other entries hold paths of this machine
_TOLERANCE = 1e-3  # of the largest output, as float32 sums in another order through all layers


def export_model(model: Any, path: str | Path, *, cache: bool = True, force: bool = False) -> Path:
    """Write a model as an ONNX graph, with its weights beside it in `<name>.data`, after a comparison with torch.

    Every graph has the inputs input_ids [b, t] and attention_mask, int64. A causal language model gives logits
    [b, t, vocab]. It also takes keys and values, past_key_values.N.key and past_key_values.N.value
    [b, heads, past, width], and gives present.N.key and present.N.value. Its attention_mask is [b, past + t], and a
    prompt has a past of length 0. Positions follow from the mask, so padding on the left is harmless. Any other model
    gives last_hidden_state [b, t, d].

    >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
    >>> model = AutoModelForCausalLM.from_pretrained("gpt2")  # doctest: +SKIP
    >>> export_model(model, host_path).name  # doctest: +SKIP
    'host.onnx'

    Args:
        model: a transformers model; a causal language model has its head. The graph computes in the model's type.
        path: the graph to write, `.onnx`.
        cache: let a causal language model take and give keys and values; without them, the mask is [b, t].
        force: replace files that exist.

    Raises:
        FileExistsError: a file exists and `force` is not set.
        ImportError: onnxscript is not installed.
        ValueError: torch cannot export the model, or the graph disagrees with torch; nothing is written.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    if path.suffix != ".onnx":
        raise ValueError(f"a graph's name ends in .onnx, got {path}")
    try:
        import onnxscript  # noqa: F401  (without it, torch's exporter fails with a page of text)
    except ImportError as error:
        raise ImportError("exporting a model needs onnxscript; run: pip install onnxscript") from error
    for file in (data, path):
        files.check_free(file, force=force)
    from sae_runtime.exports.model_form import ModelForm  # it imports torch

    with _quiet(model):
        form = ModelForm(model, cache=cache)
        exported = _exported(form)
        # The data file gets its name first and the graph last, so that no graph has a name without its weights.
        with files.new_file(path, force=force) as graph_file, files.new_file(data, force=force) as data_file:
            ir.save(exported, graph_file, external_data=data_file.name)
            _check(form, sessions.open_session(graph_file))
            relocate(graph_file, graph_file, {data_file.name: data.name})
            if force:
                path.unlink(missing_ok=True)  # an old graph must not be beside new weights
    return path


def _exported(form: Any) -> ir.Model:
    import torch

    from sae_runtime.exports.model_form import graph_inputs

    inputs = form.inputs(batch=2, time=5, past=3)
    try:
        program = torch.onnx.export(
            form.eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(graph_inputs(inputs)),
            output_names=form.outputs,
            dynamic_shapes=form.shapes(),
            opset_version=OPSET,
        )
    except Exception as error:  # the exporter raises whatever the model's code raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise ValueError(
            f"torch cannot export {type(form.model).__name__} ({reason}); try a newer transformers"
        ) from error
    assert program is not None  # dynamo always gives one
    number_calls(program)
    _keep_module_names_only(program.model)
    return program.model


def _keep_module_names_only(model: ir.Model) -> None:
    for node in model.graph:
        for key in [key for key in node.metadata_props if key not in _KEPT]:
            del node.metadata_props[key]
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _check(form: Any, session: Any) -> None:
    """Raise ValueError unless the graph gives what torch gives, for a prompt and for a step after it."""
    from sae_runtime.exports.model_form import graph_inputs

    for time, past in ((7, 0), (1, 6)) if form.layers else ((7, 0),):
        inputs = form.inputs(batch=3, time=time, past=past)
        feed = {name: tensor.numpy() for name, tensor in graph_inputs(inputs).items()}
        real = feed["attention_mask"].astype(bool)  # outputs at padding mean nothing
        for name, want, got in zip(form.outputs, form.results(inputs), session.run(form.outputs, feed), strict=True):
            if name.startswith("present."):  # [b, heads, past + t, width]
                error = _largest_error(*(part.swapaxes(1, 2)[real] for part in (want, got)))
            else:
                error = _largest_error(*(part[real[:, past:]] for part in (want, got)))
            bound = _TOLERANCE if want.dtype == np.float32 else 30 * _TOLERANCE
            if not error <= bound:
                raise ValueError(f"the graph's {name} is off by {error:.1e} of the largest; nothing was written")


def _largest_error(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """The largest difference, relative to the largest number expected."""
    expected = expected.astype(np.float64)
    difference = np.abs(expected - actual.astype(np.float64)).max(initial=0)
    return float(difference / max(np.abs(expected).max(initial=0), 1e-30))


@contextlib.contextmanager
def _quiet(model: Any) -> Iterator[None]:
    """Let the model compute by operations that torch's exporter has, and silence the exporter.

    Attention of plain operations makes the simplest graph. Of a mixture of experts, the exporter lacks the product by
    groups; `batched_mm` gathers the weights of the experts that a token takes.
    """
    attention, logger = model.config._attn_implementation, logging.getLogger("torch.onnx")
    mixture = getattr(model, "_can_set_experts_implementation", lambda: False)()
    experts, level = model.get_experts_implementation() if mixture else None, logger.level
    try:
        model.set_attn_implementation("eager")
        if mixture:
            model.set_experts_implementation("batched_mm")
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if mixture:
            model.set_experts_implementation(experts)
        model.set_attn_implementation(attention)
