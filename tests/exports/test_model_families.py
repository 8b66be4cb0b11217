"""Models that torch's exporter takes only with the right settings: mixtures of experts, and tables of positions.

`export_model` compares every graph with torch itself, for a prompt and a step after it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cases_common import relative_error
from tiny_host import run

from sae_runtime.exports.export_model import export_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
EXPERTS: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "num_experts_per_tok": 2}
NARROW = {**EXPERTS, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen2Moe": {**NARROW, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "Olmoe": {**EXPERTS, "num_experts": 4},
    "GptOss": {**EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 4},
    "DeepseekV3": {**NARROW, **LATENT, **ROUTED},
}
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 5}
BOUNDED: dict[str, tuple[dict[str, Any], int]] = {
    "GPTNeo": ({"vocab_size": 64, "hidden_size": 32, **LOCAL, "max_position_embeddings": 20}, 20),
    "GPT2": (GPT, 24),
    "CodeGen": ({**GPT, "rotary_dim": 4, "n_ctx": 24}, 24),
    "OPT": ({**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 24}, 24),
    "Bloom": ({"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 40),
}


def made(kind: str, settings: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        (name,) = [name for name in (f"{kind}ForCausalLM", f"{kind}LMHeadModel") if hasattr(transformers, name)]
        return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_is_exported_and_keeps_its_own_setting(kind: str, tmp_path: Path) -> None:
    model = made(kind, MIXTURES[kind])
    before = model.get_experts_implementation(), model.config._attn_implementation
    export_model(model, tmp_path / "host.onnx", cache=kind == "GptOss")
    assert (model.get_experts_implementation(), model.config._attn_implementation) == before


@pytest.mark.parametrize("kind", BOUNDED)
def test_the_last_position_of_a_table_is_right_after_the_longest_past(kind: str, tmp_path: Path) -> None:
    settings, limit = BOUNDED[kind]
    model = made(kind, settings)
    graph = export_model(model, tmp_path / "host.onnx")
    ids = np.random.default_rng(1).integers(4, 64, (2, limit))
    empty = np.empty((2, 4, 0, 8), np.float32)
    past = {f"past_key_values.{layer}.{part}": empty for layer in range(2) for part in ("key", "value")}
    first = run(graph, {"input_ids": ids[:, :-1], "attention_mask": np.ones((2, limit - 1), np.int64), **past})
    past = {name: first[name.replace("past_key_values", "present")] for name in past}
    last = run(graph, {"input_ids": ids[:, -1:], "attention_mask": np.ones((2, limit), np.int64), **past})["logits"]
    with torch.no_grad():
        assert relative_error(last, model(torch.from_numpy(ids)).logits[:, -1:].numpy()) < 1e-4


def test_a_model_without_keys_and_values_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = made("OpenAIGPT", GPT)
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel keeps no keys and values .* export it without cache"):
        export_model(model, tmp_path / "host.onnx")
    assert not any(tmp_path.iterdir())


def test_keys_at_padding_are_not_compared(tmp_path: Path) -> None:
    """Falcon's rows at padding see nothing, and torch and the graph make different nothings of that."""
    settings = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}
    export_model(made("Falcon", settings), tmp_path / "host.onnx")
