"""A deployed model of twelve words that is made in a moment, and what numpy says of its features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_weights
from made_hosts import WORDS, host, stream
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice

SPECIALS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
FIRST = len(SPECIALS)


def deploy_words(folder: Path, bundle: Path, *, longest: int | None = None, names: Sequence[str] = ("sae",)) -> Path:
    """A folder with a spliced host of `made_hosts` and a tokenizer that knows w4 to w11 and frames a text.

    Args:
        folder: that is written.
        bundle: of the SAE, which is put in at layer.0 under each name.
        longest: the number of tokens that the model reads by its files.
        names: of the SAEs.
    """
    graph = host(folder / "model.onnx")
    vocabulary = SPECIALS | {f"w{i}": i for i in range(FIRST, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [(token, SPECIALS[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    settings |= {} if longest is None else {"model_max_length": longest}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    splice(graph, [Splice(bundle=bundle, hook="layer.0", name=name) for name in names])
    return folder


def some_words(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in rng.integers(FIRST, WORDS, size=rng.integers(1, longest + 1))) for _ in range(count)
    ]


def features_of_text(text: str, kind: str = "mutual", d_sae: int = 150) -> NDArray[np.float64]:
    """Features of a text's own words, [words, d_sae]; the host reads each word by itself."""
    ids = np.array([int(word[1:]) for word in text.split()], np.int64)
    weights = make_weights(d_sae, kind)
    z = witness.pre_activations(weights, stream(ids, 1).astype(np.float32))
    kept = witness.threshold(z, weights["threshold"])
    return np.where(kept.kept, z, 0)


def long_words(count: int, seed: int = 0) -> list[str]:
    """Texts of many characters and few tokens: a word that the tokenizer knows, and some that are one unknown each."""
    rng = np.random.default_rng(seed)
    known = rng.integers(FIRST, WORDS, size=count)
    return [f"w{word} " + " ".join(["x" * 1_000] * int(rng.integers(1, 9))) for word in known]
