"""Trace a model with torch's exporter: the settings under which it can, in silence, and why it cannot."""

import contextlib
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch._dynamo.exc import UserError
from torch.fx.experimental import _config

from sae_runtime.exports.graphs.graph import OPSET
from sae_runtime.exports.model.call_numbers import number_calls
from sae_runtime.exports.model.form import Form
from sae_runtime.exports.model.rotary import rotate
from sae_runtime.exports.model.scan import TRANSLATIONS, chunk_scan, selective_scan

# Functions of transformers that torch's exporter cannot trace, the end of their module's name, and what stands in.
_REPLACEMENTS = (
    ("", "mamba_selective_scan", selective_scan),
    ("", "mamba2_chunk_scan", chunk_scan),
    ("modeling_deepseek_v2", "apply_rotary_emb", rotate(1)),
    ("modeling_llama4", "apply_rotary_emb", rotate(2)),
)
_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir", "transformers")
_BOUNDS = re.compile(r"(?P<name>\w+) = Dim\('\w+'(, min=(?P<min>\d+))?(, max=(?P<max>\d+))?\)")
_FIXED = re.compile(r"Suggested fixes:.*?\b(?P<name>\w+) = \d+\b")
_OPERATOR = re.compile(r"OpOverload\(op='([^']+)'|(aten[:.]+[\w.]+)|(higher_order_op\w*|torch\.ops\.[\w.]+)")


def trace(form: Form) -> ir.Model:
    """The graph of a form, whose nodes have the names of their modules.

    Raises:
        ValueError: torch cannot export it; the message names the line of the model's code, or the operator.
    """
    inputs = form.example({"batch": 2, "sequence": 5, "past": 3})
    try:
        with traceable(form.model):
            captured, shapes = _captured(form, inputs)
            program = torch.onnx.export(
                captured,
                dynamo=True,
                verbose=False,
                input_names=list(form.graph_inputs(inputs)),
                output_names=form.outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:  # the exporter raises whatever the model's code raises
        raise ValueError(_refusal(form, error)) from error
    assert program is not None  # dynamo always gives one
    number_calls(program)
    _widen(program.model.graph)
    for value in program.model.graph.inputs:
        if form.layers and value.name == "attention_mask":
            value.shape = ir.Shape(["batch", "past + sequence"])  # torch counts it as a length of its own
    return program.model


def _captured(form: Form, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """torch's own graph, and which dimensions vary in it: within the bounds of a table, perhaps, but none is fixed."""
    settings: dict[str, Any] = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True}
    shapes = form.dynamic_shapes({})
    # A graph must not differ for sizes of 0 or 1.
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            return torch.export.export(form.eval(), inputs, dynamic_shapes=shapes, **settings), shapes
        except UserError as error:
            fixes = str(error).partition("Suggested fixes:")[2].partition("\n\n")[0].strip()
            bounds = {
                found["name"]: {end: int(found[end]) for end in ("min", "max") if found[end]}
                for line in fixes.splitlines()
                if (found := _BOUNDS.fullmatch(line.strip()))
            }
            if not bounds or len(bounds) < len(fixes.splitlines()):
                raise
        shapes = form.dynamic_shapes(bounds)
        return torch.export.export(form, inputs, dynamic_shapes=shapes, **settings), shapes


def _widen(graph: ir.Graph) -> None:
    """Let what a model computes in bfloat16 by itself be computed in float32 and rounded: the same numbers.

    onnxruntime has no kernels for bfloat16 on CPUs but of casts.
    """
    for node in graph:
        kinds = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
        if node.op_type == "Cast" or ir.DataType.BFLOAT16 not in kinds:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.BFLOAT16:
                cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
                cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}/wide/{node.name}", ir.DataType.FLOAT
                graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
        for value in node.outputs:
            if value.dtype == ir.DataType.BFLOAT16:
                users = list(value.uses())
                cast = ir.node("Cast", [value], attributes={"to": ir.DataType.BFLOAT16})
                cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}/rounded", ir.DataType.BFLOAT16
                cast.outputs[0].shape, value.dtype = value.shape, ir.DataType.FLOAT
                graph.insert_after(node, cast)
                for use in users:
                    use.node.replace_input_with(use.idx, cast.outputs[0])


@contextlib.contextmanager
def traceable(model: Any) -> Iterator[None]:
    """Let the model compute by operations that torch's exporter has, and silence the exporter.

    Attention of plain operations makes the simplest graph. Of a mixture of experts, the exporter lacks the product by
    groups; `batched_mm` gathers the weights of the experts that a token takes.
    """
    attention = model.config._attn_implementation
    mixture = getattr(model, "_can_set_experts_implementation", lambda: False)()
    experts = model.get_experts_implementation() if mixture else None
    modules = {sys.modules[type(module).__module__] for module in model.modules()}
    replaced = [
        (module, name, getattr(module, name), ours)
        for module in modules
        for end, name, ours in _REPLACEMENTS
        if module.__name__.endswith(end) and hasattr(module, name)
    ]
    with silence():
        try:
            model.set_attn_implementation("eager")
            if mixture:
                model.set_experts_implementation("batched_mm")
            for module, name, _, ours in replaced:
                setattr(module, name, ours)
            yield
        finally:
            for module, name, own, _ in replaced:
                setattr(module, name, own)
            if mixture:
                model.set_experts_implementation(experts)
            model.set_attn_implementation(attention)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep warnings and the pages of torch's exporter off stderr; what fails is raised."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        # torch prints the graph that it had when it failed.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refusal(form: Form, error: BaseException) -> str:
    """Why torch cannot export a model, and what else there is to do."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    text = " ".join(str(causes[-1]).split()).replace('For more information, run with TORCH_LOGS="+dynamic". - ', "")
    lines = [line for cause in causes for line in _lines_of_models(cause)]
    operator = next((next(filter(None, m.groups())) for c in causes if (m := _OPERATOR.search(str(c)))), None)
    if fixed := _FIXED.search(text):
        where = f"its code holds for one size of {fixed['name']} alone, as a Python loop over it does"
    elif lines:
        where = f"{lines[-1]}: {text[:160]}"
    elif operator:
        where = f"no ONNX for {operator}: {text[:160]}"
    else:
        where = text[:240]
    without = "export it with --no-cache, or " if form.layers else ""
    return f"torch cannot export {type(form.model).__name__} ({where}); {without}read and edit it in torch with attach"


def _lines_of_models(error: BaseException) -> list[str]:
    """The lines of transformers' models on the way to an error, the innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        f"{Path(frame.filename).name}:{frame.lineno}, {(frame.line or '').strip()!r}"
        for frame in frames
        if "/models/" in frame.filename.replace("\\", "/")
    ]
