"""Vectors of texts, as sentence-transformers gives them by the files of a model's folder."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.deployed.layout import Layout, Sentence
from sae_runtime.deployed.notices import AssumedPoolingWarning
from sae_runtime.deployed.pooling import normalised, pooled
from sae_runtime.deployed.running_texts import Run
from sae_runtime.text.tokenizer import Tokenizer


def sentence_of(layout: Layout, *, is_pooled: bool) -> Sentence:
    """How texts become vectors: by the folder's files, else the mean over all tokens, with a warning.

    Args:
        layout: the model's files.
        is_pooled: whether the graph does all that comes after the tokens.

    Raises:
        ValueError: the files say something that is not known here.

    >>> from sae_runtime.deployed.layout import read_layout
    >>> sentence_of(read_layout(host_path), is_pooled=True).pooling
    ('mean',)
    """
    sentence = layout.sentence
    if is_pooled:
        return replace(sentence or Sentence(), pooling=("mean",), normalise=False, problem=None)
    if sentence is None:
        warnings.warn(
            f"{layout.home} has no modules.json, so embed takes the mean over all tokens, not normalised, as "
            "sentence-transformers does",
            AssumedPoolingWarning,
            stacklevel=3,
        )
        return Sentence()
    if sentence.problem is not None:
        raise ValueError(sentence.problem)
    return sentence


def chosen_prompt(sentence: Sentence, prompt: str | None, name: str | None, home: Path) -> str:
    """What stands before each text: the text of a prompt, or the folder's prompt of a name, or its default.

    Raises:
        ValueError: both are given, one is no text, or the folder has no prompt of this name.

    >>> chosen_prompt(Sentence(prompts={"query": "query: "}), None, "query", Path("model"))
    'query: '
    """
    given = [text for text in (prompt, name) if text is not None]
    if len(given) > 1 or not all(isinstance(text, str) for text in given):
        raise ValueError("give the text of a prompt, or the name of one of the folder's as prompt_name, not both")
    if prompt is not None:
        return prompt
    name = sentence.default_prompt if name is None else name
    if name is not None and name not in sentence.prompts:
        known = ", ".join(map(repr, sentence.prompts)) or "none"
        raise ValueError(f"{home} has no prompt {name!r}, it has {known}; give its text as prompt")
    return "" if name is None else sentence.prompts[name]


def tokens_of_prompt(tokenizer: Tokenizer, prompt: str, limit: int | None) -> int:
    """The tokens that a prompt has by itself, with the special ones before it, as sentence-transformers counts.

    >>> from sae_runtime.text.tokenizer import open_tokenizer
    >>> tokens_of_prompt(open_tokenizer(Path(tokenizer_path)), "", None)
    0
    """
    if not prompt:
        return 0
    (tokens,) = tokenizer.encode([prompt], limit=limit)
    last = tokenizer.token(int(tokens.ids[-1])) if len(tokens) else None
    return len(tokens) - (last in tokenizer.special_tokens.values())


def vectors_of(runs: Iterable[Run], sentence: Sentence, *, prompt: int, width: object) -> NDArray[np.float32]:
    """The vectors of texts, float32 [texts, d], from runs that give one output: [b, t, d], or pooled already [b, d].

    Args:
        runs: of batches of the texts.
        sentence: how tokens are pooled.
        prompt: number of the first tokens that are left out.
        width: of the output; something else than a number where the graph does not tell.

    Raises:
        ValueError: a vector is NaN or Inf; the message names the text.

    >>> vectors_of([], Sentence(), prompt=0, width=24).shape
    (0, 24)
    """
    parts, order = [], []
    for batch, (array,), _ in runs:
        array = array[: len(batch.texts)].astype(np.float32, copy=False)
        if array.ndim > 2:
            array = pooled(array, batch.mask[: len(batch.texts)], sentence.pooling, prompt=prompt)
        parts.append(array)
        order += batch.texts
    if not parts:
        return np.zeros((0, (width if isinstance(width, int) else 0) * len(sentence.pooling)), np.float32)
    joined = np.concatenate(parts)
    vectors = np.empty_like(joined)
    vectors[order] = normalised(joined) if sentence.normalise else joined
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise ValueError(f"the vector of text {bad[0]} is NaN or Inf; use a float32 host, or leave the text out")
    return vectors
