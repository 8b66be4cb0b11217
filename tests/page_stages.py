"""What lies at hand where a guide begins: tiny models, their SAEs and texts.

The models have random weights. Their tokenizers know the words of the guides and of the texts, so tokens look as a
reader would see them. Models and SAEs are made once for a run of the tests; `lay` copies them.
"""

import fcntl
import inspect
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import SHARED
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

D_IN, D_SAE, K = 32, 384, 16
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


def lay(folder: Path, **things: str) -> Path:
    """Copy things into the folder of a page, by the names that they have there: `my_model="encoder"`.

    Args:
        folder: of the page.
        things: for each name, with - for _, one of `THINGS`.
    """
    for name, thing in things.items():
        shutil.copytree(_made(thing), folder / name.replace("_", "-"))
    return folder


def _made(thing: str) -> Path:
    """The path of a thing, made by the first process of a run that needs it."""
    home = Path(os.environ[SHARED]) / "page-stages"
    home.mkdir(exist_ok=True)
    with (home / f"{thing}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / thing).exists():
            THINGS[thing](home / thing)
    return home / thing


def _words() -> list[str]:
    """The words and signs of all guides and texts."""
    texts = [*(page.read_text() for page in sorted((DOCS / "guides").glob("*.md"))), *paragraphs()]
    return sorted({word for text in texts for word in _WORD.findall(text)})


def encoder(folder: Path) -> Path:
    """A transformers folder of a BERT of two layers, D_IN wide, whose vectors are means of length 1."""
    known = list(dict.fromkeys([*SPECIALS, *_words()]))
    tokenizer = _tokenizer(known, "[UNK]")
    frame = [(token, known.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    _fast(tokenizer, names).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(known), intermediate_size=64, max_position_embeddings=128, **sizes)
    _save(BertModel, config, folder)
    pooling = {"word_embedding_dimension": D_IN, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def writer(folder: Path) -> Path:
    """A transformers folder of a Llama, D_IN wide, with a chat template; <|end|> ends a text."""
    known = [*_words(), "<|end|>"]
    fast = _fast(_tokenizer(known, "<|end|>"), {"unk_token": "<|end|>", "eos_token": "<|end|>"})
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    end = known.index("<|end|>")
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 3, "intermediate_size": 64}
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


def deployed(folder: Path, model: str, sae: str) -> Path:
    """The deployed model of a transformers folder and a bundle."""
    host = folder.with_name(f"{folder.name}-host") / "model.onnx"
    export_model(load_whole_model(str(_made(model))), host, home=_made(model))
    splice(host, [Splice(bundle=_made(sae))], folder)
    return folder


THINGS: dict[str, Callable[[Path], Path]] = {
    "encoder": encoder,
    "writer": writer,
    "sae": lambda folder: random_bundle(folder, ENCODER_HOOK),
    "second-sae": lambda folder: random_bundle(folder, ENCODER_HOOK, d_sae=200),
    "writer-sae": lambda folder: random_bundle(folder, WRITER_HOOK),
    "model": lambda folder: deployed(folder, "encoder", "sae"),
    "language-model": lambda folder: deployed(folder, "writer", "writer-sae"),
}


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
