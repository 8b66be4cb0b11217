"""Tiny random models of many families, and an SAE that is active on their activations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest

VOCAB, WIDTH, LAYERS, D_SAE, ACTIVE = 96, 64, 3, 128, 6
IDS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
USUAL: dict[str, Any] = {
    **IDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
GROUPED = {**USUAL, "num_key_value_heads": 1}
HEADS = {**GROUPED, "head_dim": 32}
TIED = {**HEADS, "tie_word_embeddings": True}
SLIDING = {**TIED, "sliding_window": 32, "query_pre_attn_scalar": 32}
EXPERTS = {
    **HEADS,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "norm_topk_prob": True,
}
GPT2 = {**IDS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 256}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": HEADS,
    "mistral": HEADS,
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "gemma": TIED,
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gpt2": GPT2,
    "gpt_neox": {**USUAL, "rotary_pct": 0.5},
    "gptj": {**GPT2, "rotary_dim": 16},
    "phi": {**USUAL, "partial_rotary_factor": 0.5},
    "phi3": GROUPED,
    "opt": {**USUAL, "ffn_dim": 96, "word_embed_proj_dim": WIDTH},
    "falcon": {**USUAL, "alibi": False},
    "bloom": {**IDS, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2},
    "mpt": {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 2, "max_seq_len": 256},
    "olmo": USUAL,
    "olmo2": GROUPED,
    "granite": {
        **GROUPED,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "cohere": {**GROUPED, "tie_word_embeddings": True},
    "cohere2": {**TIED, "sliding_window": 32},
    "stablelm": GROUPED,
    "smollm3": GROUPED,
    "starcoder2": GROUPED,
    "nemotron": HEADS,
    "glm4": HEADS,
    "exaone4": {**HEADS, "sliding_window": None},
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "decoder_sparse_step": 1},
    "qwen3_moe": {**EXPERTS, "decoder_sparse_step": 1},
    "olmoe": EXPERTS,
    "gpt_oss": {**EXPERTS, "sliding_window": 32},
    "mamba": {**IDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8},
    "jamba": {**EXPERTS, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]},
}


def save_model(kind: str, folder: Path) -> Any:
    """A model with weights large enough that attention and norms matter, which is also put into a folder."""
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM.from_config
    model = make(CONFIG_MAPPING[kind](**SETTINGS[kind])).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif "norm" in name or "ln" in name or parameter.numel() == WIDTH:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def write_sae(path: Path, x: Tensor, hook: str) -> Path:
    """Write an SAE of which a few features are active on activations x [tokens, d]."""
    rng = np.random.default_rng(int(x.shape[1]))
    d_in = x.shape[1]
    decoder = rng.standard_normal((D_SAE, d_in))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    mean = x.mean(dim=0).double().numpy()
    z = np.maximum((x.double().numpy() - mean) @ decoder.T, 0)
    weights = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": np.zeros(D_SAE),
        "b_dec": mean,
        "threshold": np.full(D_SAE, np.quantile(z, 1 - ACTIVE / D_SAE)),
    }
    manifest = Manifest(
        architecture=Architecture(d_in=d_in, d_sae=D_SAE, selection="threshold"),
        allocation=Allocation(kind="mutual", k=float(ACTIVE)),
        slots=D_SAE,
        model="tiny",
        hook=hook,
    )
    bundle.write(path, {name: np.ascontiguousarray(a, np.float32) for name, a in weights.items()}, manifest)
    return path
