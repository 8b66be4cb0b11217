"""Export tiny models with optimum-onnx, and write what torch computes: run by the interpreter of optimum's environment.

    .venv/optimum/bin/python tests/optimum_hosts.py FOLDER

Each model gets a folder with its graphs and `GRAPH.npz`: the feed, the activation x at the hook, and the output without
an edit and with a direction added at the hook. optimum-onnx needs an older transformers, so it has its own environment.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from optimum.exporters.onnx import onnx_export_from_model  # type: ignore[import-not-found]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WORDS, HEADS, HEAD = 99, 2, 16


def models() -> dict[str, tuple[Any, str]]:
    """The models, each with the task of its export."""
    t = transformers
    text: dict[str, Any] = {"vocab_size": WORDS, "max_position_embeddings": 64}
    gpt2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    t5: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    return {
        "bert": (t.BertModel(t.BertConfig(**SIZES, **text)), "feature-extraction"),
        "gpt2": (t.GPT2LMHeadModel(t.GPT2Config(vocab_size=WORDS, **gpt2)), "text-generation-with-past"),
        "llama": (
            t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **text, num_key_value_heads=1)),
            "text-generation-with-past",
        ),
        "vit": (t.ViTModel(t.ViTConfig(**SIZES, image_size=16, patch_size=8)), "feature-extraction"),
        "t5": (
            t.T5ForConditionalGeneration(t.T5Config(vocab_size=WORDS, **t5)),
            "text2text-generation-with-past",
        ),
    }


def past(heads: int) -> dict[str, Any]:
    """Keys and values of no tokens."""
    return {
        f"past_key_values.{layer}.{kind}": np.zeros((2, heads, 0, HEAD), np.float32)
        for layer in range(2)
        for kind in ("key", "value")
    }


def runs(name: str, model: Any) -> list[tuple[str, str, str, dict[str, Any], Callable[[], Any]]]:
    """Graph, hook, output, the graph's feed and torch's call, of each graph of a model."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(2, WORDS, (2, 7)), np.ones((2, 7), np.int64)
    text = {"input_ids": ids, "attention_mask": mask}
    given = {key: torch.from_numpy(array) for key, array in text.items()}
    if name == "bert":
        feed = text | {"token_type_ids": np.zeros_like(ids)}
        return [("model", "encoder.layer.0", "last_hidden_state", feed, lambda: model(**given).last_hidden_state)]
    if name == "vit":
        pixels = rng.standard_normal((2, 3, 16, 16)).astype(np.float32)
        call = lambda: model(torch.from_numpy(pixels)).last_hidden_state  # noqa: E731
        return [("model", "encoder.layer.0", "last_hidden_state", {"pixel_values": pixels}, call)]
    if name in ("gpt2", "llama"):
        hook, heads = ("transformer.h.0", HEADS) if name == "gpt2" else ("model.layers.0", 1)
        feed = text | {"position_ids": np.tile(np.arange(7), (2, 1))} | past(heads)
        return [("model", hook, "logits", feed, lambda: model(**given).logits)]
    states = rng.standard_normal((2, 7, 32)).astype(np.float32)
    decode = {"input_ids": ids[:, :4], "encoder_hidden_states": states, "encoder_attention_mask": mask}

    def decoded() -> Any:
        return model(
            decoder_input_ids=torch.from_numpy(ids[:, :4]),
            encoder_outputs=(torch.from_numpy(states),),
            attention_mask=given["attention_mask"],
        ).logits

    return [
        (
            "encoder_model",
            "encoder.block.0",
            "last_hidden_state",
            text,
            lambda: model.encoder(**given, use_cache=False).last_hidden_state,
        ),
        ("decoder_model", "decoder.block.0", "logits", decode, decoded),
    ]


@torch.no_grad()
def truth(model: Any, hook: str, call: Callable[[], Any], direction: torch.Tensor) -> dict[str, Any]:
    """The activation at a hook, and the output without an edit and with a direction added there."""
    seen = []

    def added(_module: Any, _given: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        seen.append(first.numpy().copy())
        return (first + direction, *output[1:]) if isinstance(output, tuple) else first + direction

    plain = call().numpy()
    handle = model.get_submodule(hook).register_forward_hook(added)
    edited = call().numpy()
    handle.remove()
    return {"x": seen[0], "plain": plain, "edited": edited, "direction": direction.numpy()}


def main(folder: Path) -> None:
    """Write a folder of each model."""
    torch.manual_seed(0)
    for name, (model, task) in models().items():
        model = model.eval()
        if name in ("gpt2", "llama"):
            with torch.no_grad():  # else its stream is so small that no feature is active
                model.get_input_embeddings().weight *= 50
        onnx_export_from_model(model, folder / name, task=task, do_validation=False)
        for graph, hook, output, feed, call in runs(name, model):
            arrays = truth(model, hook, call, torch.randn(1, 1, 32))
            named = {f"feed.{key}": array for key, array in feed.items()}
            np.savez(folder / name / f"{graph}.npz", hook=hook, output=output, **arrays, **named)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
