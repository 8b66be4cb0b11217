"""A transformers model as an ONNX graph with dynamic batch and sequence, for a splice to start from.

torch's exporter writes the names of the modules on every node, and `splice` finds hooks by these names.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import files
from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.model_files import files_to_copy, model_files, refuse_shared
from sae_runtime.engine import sessions
from sae_runtime.exports.graphs.external import relocate

_KEPT = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")  # other entries hold paths of this machine


def export_model(
    model: Any,
    path: str | Path,
    *,
    cache: bool = True,
    part: str | None = None,
    image: int | None = None,
    home: Path | None = None,
    force: bool = False,
) -> Path:
    """Write a model as an ONNX graph, with its weights beside it in `<name>.data`, after a comparison with torch.

    A model of text has the inputs input_ids [b, t] and attention_mask, int64. If it knows two types of tokens, it also
    has token_type_ids [b, t]. A base model has 0 as their default. A model with a head may read pairs of texts, so it
    has no default. Other models read pixel_values, input_features or input_values. The outputs are those of the model,
    by transformers' names for them: last_hidden_state, pooler_output, logits, start_logits, text_embeds ...

    A causal language model also takes keys and values, past_key_values.N.key and past_key_values.N.value
    [b, heads, past, width], and gives present.N.key and present.N.value. Its attention_mask is [b, past + t], and a
    prompt has a past of length 0. Positions follow from the mask, so padding on the left is harmless.

    >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
    >>> model = AutoModelForCausalLM.from_pretrained("gpt2")  # doctest: +SKIP
    >>> export_model(model, host_path).name  # doctest: +SKIP
    'host.onnx'

    Args:
        model: a transformers model, with or without a head. The graph computes in the model's type.
        path: the graph to write, `.onnx`.
        cache: let a causal language model take and give keys and values; without them, the mask is [b, t].
        part: `encoder` or `decoder` of a model that has both; `text` or `vision` of one that reads texts and pictures.
            None: the encoder of a model with a decoder, the whole of any other. A decoder reads input_ids [b, t],
            encoder_hidden_states [b, s, d] and encoder_attention_mask [b, s].
        image: height and width of pictures; None: what the model's config says.
        home: the model's folder, of which tokenizer, configuration and the like are copied beside the graph.
        force: replace files that exist.

    Raises:
        FileExistsError: a file exists and `force` is not set, it is one of another model, or a spliced graph reads it.
        ValueError: torch cannot export the model, or the graph disagrees with torch; nothing is written.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    if path.suffix != ".onnx":
        raise ValueError(f"a graph's name ends in .onnx, got {path}")
    for file in (data, path):
        files.check_free(file, force=force, kind="file")
    beside = {} if home is None else files_to_copy(home, model_files(home), path)
    from sae_runtime.exports.model.compare import check  # these import torch
    from sae_runtime.exports.model.tracing import silence, trace

    with silence():
        form = _form(model, cache=cache, part=part, image=image)
        exported = trace(form)
        _keep_module_names_only(exported)
        for name in (name for name, one in form.inputs.items() if one.optional):
            _give_default(exported.graph, name)
        names = [*beside, data.name, path.name]
        with files.new_files_in(path.parent, names, force=force, apart=beside) as to_fill:
            for name, file in beside.items():
                shutil.copyfile(file, to_fill[name])
            data_file, graph_file = to_fill[data.name], to_fill[path.name]
            ir.save(exported, graph_file, external_data=data_file.name)
            check(form, _opened(graph_file))
            relocate(graph_file, graph_file, {data_file.name: data.name})
            refuse_shared(data, data_file, path)
    return path


def _form(model: Any, **settings: Any) -> Any:
    from sae_runtime.exports.model.form import Form

    try:
        return Form(model, **settings)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # configs and classes differ in whatever transformers' authors liked
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{type(model).__name__} is of a kind that export-model does not know ({reason}); export it with "
            "torch.onnx.export"
        ) from error


def _opened(path: Path) -> Any:
    try:
        return sessions.open_session(path)
    except BundleError as error:
        reason = " ".join(str(error.__cause__).split())[:200]
        raise ValueError(f"onnxruntime refuses the graph ({reason}); nothing was written") from error


def _keep_module_names_only(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        for key in [key for key in node.metadata_props if key not in _KEPT]:
            del node.metadata_props[key]
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _give_default(graph: ir.Graph, name: str) -> None:
    """Give an input of integers [b, t] the default 0, for every token."""
    ids = graph.inputs[0]
    given = next(value for value in graph.inputs if value.name == name)
    users = list(given.uses())
    shape = ir.node("Shape", [ids])
    spread = ir.node("Expand", [given, shape.outputs[0]])
    graph.insert_before(next(iter(graph)), [shape, spread])
    for number, node in enumerate((shape, spread)):
        node.outputs[0].name = f"{name}/{('shape', 'spread')[number]}"
    for node, dims in ((shape, ir.Shape([2])), (spread, ids.shape)):
        node.outputs[0].shape, node.outputs[0].dtype = dims, ir.DataType.INT64
    for use in users:
        use.node.replace_input_with(use.idx, spread.outputs[0])
    given.shape = ir.Shape([f"{name}_batch", f"{name}_sequence"])
    given.const_value = ir.tensor(np.zeros((1, 1), np.int64), name=name)
    graph.initializers[name] = given
