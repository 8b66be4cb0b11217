"""Rows that are equal (BOS in a causal model, the embedding of one word): a threshold that lies on a value decides.

The L0 that was measured is the L0 that is served, and a token's features do not depend on its batch.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import (
    WORDS,
    all_rows,
    fitted,
    harvested,
    read_weights,
    true_features,
    word_tokenizer,
    write_paragraphs,
)
from transformers import LlamaConfig, LlamaForCausalLM

from sae_runtime import Activations, load
from sae_runtime.exports import export

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SETTINGS: dict[str, Any] = {"k": 8, "d_sae": 512, "tokens": 150_000, "batch": 1000}


@pytest.fixture(scope="module")
def harvest_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Activations]:
    """Give the activations of a hook of a tiny Llama on texts of words by a Zipf law."""
    folder = tmp_path_factory.mktemp("ties")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS + 4, max_position_embeddings=128, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder / "model")
    word_tokenizer(bos=True).save_pretrained(folder / "model")
    words = [np.random.default_rng(seed).zipf(1.3, size=31) % 56 for seed in range(400)]
    text = write_paragraphs(folder / "text.txt", [" ".join(f"w{i}" for i in numbers) for numbers in words])

    @functools.cache
    def give(hook: str, *, special: bool = False) -> Activations:
        out = folder / f"{hook}-{special}"
        return harvested(folder / "model", hook, text, out, context=32, special=special)

    return give


def measured_and_served(activations: Activations, out: Path, kind: str, slack: float) -> tuple[float, float]:
    """The mean L0 that a fit measured, and the true one on all rows."""
    measured = fitted(activations.path, out, allocation=kind, slack=slack, **SETTINGS)
    features = true_features(read_weights(out), all_rows(activations))
    return measured["l0"], float((features > 0).sum(axis=1).mean())


@pytest.mark.parametrize(("kind", "slack"), [("mutual", 3.0), ("feature", 3.0)])
def test_a_wide_limit_serves_the_l0_that_was_measured(
    harvest_at: Callable[..., Activations], tmp_path: Path, kind: str, slack: float
) -> None:
    measured, served = measured_and_served(harvest_at("embed_tokens"), tmp_path / "sae", kind, slack)
    assert served == pytest.approx(measured, rel=0.08)


def test_a_strict_limit_serves_the_l0_that_was_measured(harvest_at: Callable[..., Activations], tmp_path: Path) -> None:
    measured, served = measured_and_served(harvest_at("embed_tokens"), tmp_path / "sae", "feature", 1.0)
    assert served == pytest.approx(measured, rel=0.08)


def test_equal_rows_get_the_same_features_in_any_batch(harvest_at: Callable[..., Activations], tmp_path: Path) -> None:
    activations = harvest_at("layers.0", special=True)
    fitted(activations.path, tmp_path / "sae", allocation="feature", slack=1.0, **SETTINGS)
    export(tmp_path / "sae")
    sae, x = load(tmp_path / "sae", threads=1), all_rows(activations)[:500]
    alone = sae.encode(x[:1]).to_dense()[0]
    for rows in (2, 7, 64, 500):
        batch = np.concatenate([x[:1], x[1:rows]])
        assert ((sae.encode(batch).to_dense()[0] > 0) == (alone > 0)).all()
