"""Transformers models of a few thousand random weights, saved with a tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
WORDS = 40
END = WORDS  # id of GPT-2's only special token


def save_bert(folder: Path) -> Path:
    """A BERT of three layers with d_in 16. Its tokenizer knows w0 to w39 and frames a text by [CLS] and [SEP]."""
    vocabulary = SPECIALS | {f"w{i}": i + len(SPECIALS) for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [(token, SPECIALS[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names: dict[str, Any] = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # not typed
    fast.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path, **settings: Any) -> Path:
    """A GPT-2 of two layers with d_in 16 and a head. Its tokenizer adds nothing to a text and has no padding."""
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<|end|>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"unk_token": "<|end|>", "eos_token": "<|end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # not typed
    fast.save_pretrained(folder)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=END, eos_token_id=END, **sizes, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_words(path: Path, paragraphs: int) -> Path:
    """Write a text of paragraphs of 1 to 40 words that the tokenizers know."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(WORDS, size=rng.integers(1, 41))) for _ in range(paragraphs)]
    path.write_text("\n\n".join(texts))
    return path
