"""What lies at hand where a document begins: tiny models of a page's own words, their SAEs, and texts.

The models have random weights. Their tokenizers know the words of the page and of the texts, so tokens look as a reader
would see them.
"""

import inspect
import itertools
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from documents import DOCS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.stats import Stats
from sae_runtime.exports.export import export
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train.harvest.host_model import load_whole_model

D_IN, D_SAE, K = 32, 1024, 6
ENCODER_HOOK, WRITER_HOOK = "encoder.layer.1", "model.layers.2"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
_WORD = re.compile(r"\w+|[^\w\s]")


def paragraphs(modules: Iterable[str] = ("csv", "json", "tarfile", "html")) -> list[str]:
    """Texts of some English: the paragraphs of docstrings of Python's own modules, each once."""
    found = dict[str, None]()
    for name in modules:
        module = import_module(name)
        ours = [one for _, one in inspect.getmembers(module) if inspect.isclass(one) or inspect.isfunction(one)]
        members = itertools.chain.from_iterable(vars(one).values() for one in ours if inspect.isclass(one))
        for one in (module, *ours, *members):
            text = inspect.getdoc(one) if getattr(one, "__doc__", None) else None
            found |= dict.fromkeys(" ".join(part.split()) for part in (text or "").split("\n\n"))
    return [text for text in found if len(text) > 20]


def words(page: str, texts: Iterable[str] = ()) -> list[str]:
    """The words and signs of a page of the documents, and of texts."""
    return sorted({word for text in ((DOCS / page).read_text(), *texts) for word in _WORD.findall(text)})


def encoder(folder: Path, vocabulary: Iterable[str]) -> Path:
    """A transformers folder of a BERT of two layers, D_IN wide, which frames a text by [CLS] and [SEP]."""
    known = list(dict.fromkeys([*SPECIALS, *vocabulary]))
    tokenizer = _tokenizer(known, "[UNK]")
    frame = [(token, known.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    _fast(tokenizer, names).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(known), intermediate_size=64, max_position_embeddings=128, **sizes)
    _save(BertModel, config, folder)
    return folder


def writer(folder: Path, vocabulary: Iterable[str], layers: int = 3) -> Path:
    """A transformers folder of a Llama, D_IN wide, with a chat template; <|end|> ends a text."""
    known = list(dict.fromkeys([*vocabulary, "<|end|>"]))
    fast = _fast(_tokenizer(known, "<|end|>"), {"unk_token": "<|end|>", "eos_token": "<|end|>"})
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    end = known.index("<|end|>")
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": layers, "intermediate_size": 64}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    tokens: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = LlamaConfig(vocab_size=len(known), initializer_range=0.4, **sizes, **heads, **tokens)
    _save(LlamaForCausalLM, config, folder)
    return folder


def random_bundle(folder: Path, hook: str | None, *, d_sae: int = D_SAE, model: str | None = None) -> Path:
    """An exported bundle of token choice with random directions, whose stats say a largest activation of 3."""
    rng = np.random.default_rng(d_sae)
    decoder = rng.standard_normal((d_sae, D_IN))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    biases = {"b_enc": np.zeros(d_sae), "b_dec": np.zeros(D_IN)}
    weights = {"W_enc": np.ascontiguousarray(decoder.T), "W_dec": decoder} | biases
    manifest = Manifest(
        architecture=Architecture(d_in=D_IN, d_sae=d_sae, selection="topk", k=K),
        allocation=Allocation(kind="token", k=float(K)),
        slots=K,
        model=model,
        hook=hook,
    )
    stats = Stats(np.full(d_sae, K / d_sae, np.float32), np.full(d_sae, 3, np.float32), 10_000)
    bundles.write(folder, {name: array.astype(np.float32) for name, array in weights.items()}, manifest, stats=stats)
    export(folder, graphs=())
    return folder


def deploy(model: Path, saes: Iterable[Splice], out: Path) -> Path:
    """A deployed model of a transformers folder: exported to OUT_host, and spliced."""
    host = out.with_name(f"{out.name}-host") / "model.onnx"
    export_model(load_whole_model(str(model)), host, home=model)
    splice(host, list(saes), out)
    return out


def _tokenizer(known: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    return tokenizer


def _fast(tokenizer: Tokenizer, names: dict[str, str]) -> Any:
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, **names)


def _save(kind: Any, config: Any, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
