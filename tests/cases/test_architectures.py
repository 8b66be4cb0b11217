"""Hooks of many architectures: `harvest`, in padded batches, against one pass without padding for each window."""

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

pytestmark = pytest.mark.usefixtures("one_thread")

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
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
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
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "cohere": GROUPED,
    "gpt_oss": {**MIXTURE, "sliding_window": 8},
    "smollm3": GROUPED,
    "mamba": STATES,
    "mamba2": {**STATES, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "rwkv": {**USUAL, "attention_hidden_size": 32, "context_length": 512},
    "t5": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4},
    "bart": {**IDS, **BART, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": LAYERS, "n_head": 4, "d_inner": 64},
    "bert": USUAL,
    "roberta": {**USUAL, "max_position_embeddings": 514},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64},
    "electra": {**USUAL, "embedding_size": 16},
    "deberta-v2": {**USUAL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    "modernbert": {**USUAL, "local_attention": 8, "global_attn_every_n_layers": 2},
    "longformer": {**USUAL, "attention_window": 8, "max_position_embeddings": 514},
    "clip_text_model": USUAL,
}
WRONG = ("xlnet",)


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
    """The last layer, and up to two of its parts."""
    lists = (name for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS)
    layer = f"{next(lists)}.{LAYERS - 1}"
    names = [name for name, _ in model.get_submodule(layer).named_children()]
    return [layer, *(f"{layer}.{name}" for name in names if any(part in name.lower() for part in PARTS))][:3]


def true_rows(model: Any, hook: str) -> Rows:
    """The activations of all tokens but BOS, one window at a time."""
    rows, tokenizer = [], word_tokenizer(bos=True)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for begin in range(0, len(ids), CONTEXT - 1):
            window = torch.tensor([[BOS, *ids[begin : begin + CONTEXT - 1]]])
            x = hooked(model, hook, partial(forward, model, window))[0]
            rows.append(x.reshape(-1, x.shape[-1])[1:])
    return np.concatenate(rows)


def forward(model: Any, ids: torch.Tensor) -> None:
    """A forward pass; the decoder of a model with an encoder reads the same tokens."""
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    model(input_ids=ids, **decoder)


def assert_torchs_or_refused(kind: str, folder: Path) -> None:
    model = save_model(kind, folder / "model")
    text = write_paragraphs(folder / "text.txt", TEXTS)
    for number, hook in enumerate(hooks_of(model)):
        out = folder / f"activations-{number}"
        try:
            activations = harvested(folder / "model", hook, text, out, context=CONTEXT, batch_tokens=256)
        except ValueError:
            continue
        assert relative_error(all_rows(activations), true_rows(model, hook)) < 1e-4, hook


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind not in WRONG])
def test_harvest_reads_what_torch_gives_or_refuses(kind: str, tmp_path: Path) -> None:
    assert_torchs_or_refused(kind, tmp_path)


@pytest.mark.xfail(strict=True, reason="The mask is bool, and this model wants numbers, so torch raises its own error.")
@pytest.mark.parametrize("kind", WRONG)
def test_harvest_reads_what_torch_gives_or_refuses_in_words(kind: str, tmp_path: Path) -> None:
    assert_torchs_or_refused(kind, tmp_path)
