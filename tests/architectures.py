"""Tiny models of many architectures, and the rows that torch gives for one window at a time, without padding."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import (
    BOS,
    Rows,
    all_rows,
    harvested,
    hooked,
    random_texts,
    relative_error,
    word_tokenizer,
    write_paragraphs,
)
from transformers import CONFIG_MAPPING, AutoModel

LAYERS, CONTEXT = 2, 32
TEXTS = random_texts([3, 70, 1, 20, 31, 9, 30, 29, 45, 2])
PARTS = ("attn", "attention", "mlp", "mixer", "feed", "moe", "conv")

IDS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": 3}
USUAL: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, Any] = {**USUAL, "num_key_value_heads": 2, "head_dim": 8}
SLIDING: dict[str, Any] = {**GROUPED, "sliding_window": 8}
MIXTURE: dict[str, Any] = {
    **GROUPED,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
GPT2: dict[str, Any] = {**IDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 512}
STATES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 8}
FEED_FORWARD: dict[str, Any] = {**IDS, "hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 4}
BART: dict[str, Any] = {
    **IDS,
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 512,
}
T5: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "codegen": {**GPT2, "rotary_dim": 4, "n_ctx": 512},
    "gpt_neo": {
        **IDS,
        "hidden_size": 32,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": {**USUAL, "rotary_pct": 0.5},
    "opt": {**FEED_FORWARD, "num_hidden_layers": LAYERS, "max_position_embeddings": 512, "word_embed_proj_dim": 32},
    "bloom": {**IDS, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "falcon": {**USUAL, "alibi": True},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 512},
    "llama": GROUPED,
    "mistral": SLIDING,
    "mixtral": MIXTURE,
    "qwen3": GROUPED,
    "qwen3_moe": MIXTURE,
    "gemma": GROUPED,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "phi": USUAL,
    "starcoder2": GROUPED,
    "granite": GROUPED,
    "glm4": GROUPED,
    "nemotron": GROUPED,
    "olmoe": MIXTURE,
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 32},
    "deepseek_v3": {**USUAL, **LATENT},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "cohere": GROUPED,
    "gpt_oss": {**MIXTURE, "sliding_window": 8},
    "smollm3": GROUPED,
    "mamba": STATES,
    "mamba2": {**STATES, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "lfm2": {**USUAL, "num_key_value_heads": 2},
    "jamba": {
        **GROUPED,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "rwkv": {**USUAL, "attention_hidden_size": 32, "context_length": 512},
    "t5": T5,
    "longt5": {**T5, "local_radius": 7},
    "switch_transformers": {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "bart": BART,
    "pegasus": BART,
    "marian": BART,
    "led": {
        **BART,
        "attention_window": 8,
        "max_encoder_position_embeddings": 512,
        "max_decoder_position_embeddings": 512,
    },
    "fsmt": {
        **BART,
        "src_vocab_size": 64,
        "tgt_vocab_size": 64,
        "langs": ["en", "de"],
    },
    "prophetnet": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_encoder_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 512,
    },
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": LAYERS, "n_head": 4, "d_inner": 64},
    "bert": USUAL,
    "roberta": {**USUAL, "max_position_embeddings": 514},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64},
    "electra": {**USUAL, "embedding_size": 16},
    "deberta-v2": {**USUAL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "modernbert": {**USUAL, "local_attention": 8, "global_attn_every_n_layers": 2},
    "longformer": {**USUAL, "attention_window": 8, "max_position_embeddings": 514},
    "big_bird": {**USUAL, "block_size": 8, "num_random_blocks": 1},
    "clip_text_model": USUAL,
    "fnet": {**USUAL, "tpu_short_seq_length": 512},
    "convbert": {**USUAL, "embedding_size": 32, "conv_kernel_size": 3},
    "mpnet": USUAL,
    "roformer": {**USUAL, "embedding_size": 32},
    "luke": {**USUAL, "entity_vocab_size": 10, "entity_emb_size": 16, "max_position_embeddings": 514},
    "nystromformer": {**USUAL, "num_landmarks": 4, "segment_means_seq_len": 8},
    "squeezebert": {**USUAL, "embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1},
    "canine": USUAL,
    "perceiver": {
        "num_latents": 16,
        "d_latents": 32,
        "d_model": 32,
        "vocab_size": 64,
        "num_self_attends_per_block": LAYERS,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "max_position_embeddings": 512,
    },
    "reformer": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "feed_forward_size": 64,
        "axial_pos_embds": False,
        "max_position_embeddings": 512,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "is_decoder": True,
    },
}
FEW = ("gpt2", "llama", "gemma2", "mixtral", "mamba", "bert", "t5", "bart", "xlnet", "longformer")
"""Ten of different kinds."""

REFUSED = {
    ("prophetnet", "decoder.layers.1"): r"gives \[8, 54, 32\], expected \[8, 18, d_in\], a row for each token",
    ("nystromformer", "encoder.layer.1"): r"^NystromformerModel fails on text \(The size of .+\); its forward takes ",
    ("nystromformer", "encoder.layer.1.attention"): "^NystromformerModel fails on text",
    ("squeezebert", "encoder.layers.1"): r"never calls encoder\.layers\.1 \(SqueezeBertModule\)",
    ("squeezebert", "encoder.layers.1.attention"): "a row for each token",  # [batch, d, time]
    ("squeezebert", "encoder.layers.1.post_attention"): "a row for each token",
    ("canine", "encoder.layer.1"): r"gives \[8, 1, 32\], expected \[8, 6, d_in\], a row for each token",
    ("canine", "encoder.layer.1.attention"): "a row for each token",
    ("perceiver", "encoder.self_attends.1"): "is a PerceiverModel, which takes inputs, not text; name a model of text$",
    ("perceiver", "encoder.self_attends.1.attention"): "which takes inputs, not text",
    ("perceiver", "encoder.self_attends.1.mlp"): "which takes inputs, not text",
    ("reformer", "encoder.layers.1"): "a row for each token",
    ("reformer", "encoder.layers.1.attention"): "a row for each token",
    ("reformer", "encoder.layers.1.feed_forward"): "a row for each token",
}
"""What cannot be read as a row for each token, with its sentence."""


def save_model(kind: str, folder: Path) -> Any:
    """A model with weights large enough that padding, masks and positions matter, on disk with a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make: Any = AutoModel.from_config
        model = make(CONFIG_MAPPING[kind](**SETTINGS[kind])).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
    model.save_pretrained(folder)
    word_tokenizer(bos=True).save_pretrained(folder)
    model.config.use_cache = False
    return model


def hooks_of(model: Any) -> list[str]:
    """The last layer, up to two of its parts, and the last layer of a decoder behind an encoder."""
    lists = [name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS]
    layer = f"{lists[0]}.{LAYERS - 1}"
    names = [name for name, _ in model.get_submodule(layer).named_children()]
    parts = [f"{layer}.{name}" for name in names if any(part in name.lower() for part in PARTS)]
    decoders = [f"{name}.{LAYERS - 1}" for name in lists if name.startswith("decoder.")]
    return [layer, *parts[:2], *(decoders[:1] if model.config.is_encoder_decoder else [])]


def true_rows(model: Any, hook: str) -> Rows:
    """The activations of all tokens but BOS, one window at a time."""
    rows, tokenizer = [], word_tokenizer(bos=True)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for begin in range(0, len(ids), CONTEXT - 1):
            window = torch.tensor([[BOS, *ids[begin : begin + CONTEXT - 1]]])
            x = hooked(model, hook, partial(forward, model, window))[0]
            rows.append(x.reshape(-1, x.shape[-1])[1 : window.shape[1]])  # some models pad by themselves
    return np.concatenate(rows)


def forward(model: Any, ids: torch.Tensor) -> None:
    """A forward pass; the decoder of a model with an encoder reads the same tokens."""
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    model(input_ids=ids, **decoder)


def assert_torchs_or_refused(kind: str, folder: Path) -> None:
    """Harvest in padded batches gives torch's rows at each hook, or refuses it with the sentence of `REFUSED`."""
    model = save_model(kind, folder / "model")
    text = write_paragraphs(folder / "text.txt", TEXTS)
    for number, hook in enumerate(hooks_of(model)):
        harvest = partial(harvested, folder / "model", hook, text, folder / f"activations-{number}")
        if message := REFUSED.get((kind, hook)):
            with pytest.raises(ValueError, match=message):
                harvest(context=CONTEXT, batch_tokens=256)
        else:
            x = all_rows(harvest(context=CONTEXT, batch_tokens=256))
            assert relative_error(x, true_rows(model, hook)) < 1e-4, hook
