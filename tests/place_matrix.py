"""Tiny models of several families, their graphs in many forms, and the places that hooks name in them."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import transformers
from cases_common import Rows, first_tensor, relative_error
from numpy.typing import NDArray
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from onnxruntime.transformers.optimizer import optimize_model

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.hook_tensor import find_hook

D_IN, HEADS, LAYERS, WORDS = 32, 4, 2, 64
Arrays = dict[str, NDArray[Any]]

SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": D_IN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT = {"vocab_size": WORDS, "n_embd": D_IN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
OPT = {
    **{name: SIZES[name] for name in SIZES if name != "intermediate_size"},
    "ffn_dim": 48,
    "word_embed_proj_dim": D_IN,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES),
    "distilbert": (
        "DistilBert",
        {"vocab_size": WORDS, "dim": D_IN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48},
    ),
    "gpt2": ("GPT2", GPT),
    "opt": ("OPT", OPT),
    "opt-post": ("OPT", {**OPT, "do_layer_norm_before": False}),
    "llama": ("Llama", GROUPED),
    "gemma2": ("Gemma2", GROUPED),
    "granite": ("Granite", {**GROUPED, "residual_multiplier": 0.3, "embedding_multiplier": 3.0}),
    "neox": ("GPTNeoX", {**SIZES, "rotary_pct": 0.5}),
    "cohere": ("Cohere", GROUPED),
    "bloom": ("Bloom", {"vocab_size": WORDS, "hidden_size": D_IN, "n_layer": LAYERS, "n_head": HEADS}),
    "vit": ("ViT", {**SIZES, "image_size": 16, "patch_size": 4}),
}
"""Norms behind each part (bert, opt-post), before it, on both sides (gemma2); blocks in parallel (neox, cohere)."""

BLOCKS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
    "gpt2": "h",
    "opt": "decoder.layers",
    "opt-post": "decoder.layers",
    "bloom": "h",
    "vit": "layers",
}
IDS = np.random.default_rng(0).integers(3, WORDS, (2, 7))


@functools.cache
def torch_model(kind: str) -> Any:
    """A model with weights and biases large enough that each part of it matters."""
    name, settings = FAMILIES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings)
        model = getattr(transformers, f"{name}Model")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(6)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    model.config.use_cache = False
    model.set_attn_implementation("eager")
    return model


def inputs_of(kind: str) -> Arrays:
    if kind == "vit":
        return {"pixel_values": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    return {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def block_of(kind: str) -> str:
    return f"{BLOCKS.get(kind, 'layers')}.{LAYERS - 1}"


@functools.cache
def torch_values(kind: str) -> dict[str, list[Rows]]:
    """By hook, the values at every call of each module, and at its input where that is one tensor."""
    model, seen = torch_model(kind), dict[str, list[Rows]]()

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, named: Any, output: Any) -> None:
            given = args[:1] or named.values()  # a hook means the first argument by position
            tensors = {id(a): a for a in given if isinstance(a, torch.Tensor) and a.ndim == 3}
            if len(tensors) == 1:
                seen.setdefault(f"input:{name}", []).append(next(iter(tensors.values())).numpy().copy())
            seen.setdefault(name, []).append(first_tensor(output).numpy().copy())

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name), with_kwargs=True)
    with torch.no_grad():
        model(**{name: torch.from_numpy(array) for name, array in inputs_of(kind).items()})
    for module in model.modules():
        module._forward_hooks.clear()
    return seen


def expected(kind: str, hook: str) -> Rows | None:
    """The value that a hook means, by torch; None where the model has no such place."""
    seen, block = torch_values(kind), block_of(kind)
    place = hook.removeprefix(f"{block}.")
    if place == "resid_pre":
        return seen[f"{BLOCKS.get(kind, 'layers')}.{LAYERS - 2}"][0]
    post_norm = kind in ("bert", "roberta", "distilbert", "opt-post")
    if place in ("resid_mid", "resid_post") and post_norm:
        return None
    if place == "resid_post":
        return seen[block][0]
    if place == "resid_mid":
        before = expected(kind, f"{block}.resid_pre")
        assert before is not None
        added = {
            "gpt2": "attn", "opt": "self_attn", "llama": "self_attn", "gemma2": "post_attention_layernorm",
            "granite": "self_attn", "vit": "attention",
        }.get(kind)  # fmt: skip
        if kind == "bloom":
            return seen[f"{block}.self_attention"][0]
        scale = 0.3 if kind == "granite" else 1
        return None if added is None else before + scale * seen[f"{block}.{added}"][0]
    values = seen.get(hook, [])
    return values[0] if len(values) == 1 and values[0].ndim == 3 and values[0].shape[2] == D_IN else None


def hooks_of(kind: str) -> list[str]:
    """All hooks of the last block and of the embeddings, and the places of the residual stream."""
    block, names = block_of(kind), [name for name, _ in torch_model(kind).named_modules()]
    inside = [name for name in names if name == block or name.startswith(f"{block}.") or "embed" in name]
    norms = [name for name in names if name.count(".") < 2 and ("norm" in name or "ln_" in name)]
    streams = [f"{block}.resid_{place}" for place in ("pre", "mid", "post")]
    return [*streams, *(f"{side}{name}" for name in dict.fromkeys([*inside, *norms]) for side in ("", "input:"))]


def exported(kind: str, path: Path) -> Path:
    if kind == "vit":
        values = tuple(map(torch.from_numpy, inputs_of(kind).values()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                torch_model(kind), values, str(path), dynamo=True, verbose=False, input_names=["pixel_values"],
                external_data=False,
            )  # fmt: skip
        return path
    return export_model(torch_model(kind), path, cache=False)


class _Last(torch.nn.Module):
    """The old exporter wants a module that takes and gives tensors."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model(**dict(zip(self.names, given, strict=True)))[0])


def exported_as_of_old(kind: str, path: Path, opset: int) -> Path:
    """By the exporter that names nodes by path, with the shapes that onnxruntime's tool infers."""
    inputs = inputs_of(kind)
    names, axes = list(inputs), {0: "batch"} if kind == "vit" else {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Last(torch_model(kind), names).eval(),
            tuple(map(torch.from_numpy, inputs.values())), str(path), dynamo=False,
            opset_version=opset, input_names=names, output_names=["last"], dynamic_axes=dict.fromkeys(names, axes),
        )  # fmt: skip
    inferred(path)
    return path


def inferred(path: Path) -> None:
    with contextlib.suppress(Exception):  # it does not know every node of an optimised graph
        onnx.save(SymbolicShapeInference.infer_shapes(onnx.load(str(path)), auto_merge=True), str(path))


def saved_by_onnxruntime(host: Path, path: Path, level: str) -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(str(host), options, providers=["CPUExecutionProvider"])
    inferred(path)
    return path


def optimised_in_python(host: Path, path: Path, level: int, kind: str) -> Path:
    model_type = {"gpt2": "gpt2", "vit": "vit", "opt": "gpt2"}.get(kind, "bert")
    made = optimize_model(str(host), model_type, num_heads=HEADS, hidden_size=D_IN, opt_level=level)
    made.save_model_to_file(str(path))
    inferred(path)
    return path


def value_at(graph: Path, kind: str, hook: str) -> Rows:
    """What a splice would read at a hook: the value found becomes an output of the graph, which is run.

    Raises:
        ValueError: the hook is refused.
    """
    model = ir.load(graph)
    value = find_hook(model.graph, parse_hook(hook), D_IN)
    if not value.is_graph_output():
        model.graph.outputs.append(value)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    path = graph.with_suffix(".tapped.onnx")
    ir.save(model, path)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {name: array for name, array in inputs_of(kind).items() if name in {i.name for i in session.get_inputs()}}
    return np.asarray(session.run([value.name], feed)[0])


def verdict(graph: Path, kind: str, hook: str) -> str:
    """ "equal" to torch, "refused" with a reason, or what is wrong."""
    want = expected(kind, hook)
    try:
        got = value_at(graph, kind, hook)
    except ValueError as error:
        return f"refused: {error}"
    if want is None:
        return "WRONG: torch has no such place"
    if got.shape != want.shape:
        return f"WRONG: {got.shape}, expected {want.shape}"
    off = relative_error(got, want)
    return "equal" if off < 1e-5 else f"WRONG: {off:.1e}"
