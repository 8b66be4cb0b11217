"""A GPT-Neo as TinyStories has it, 2,048 positions with a local window of 256: its graph agrees with torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import relative_error
from tiny_host import run
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sae_runtime.exports.export_model import export_model

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = np.random.default_rng(0).integers(4, 64, (2, 9))


@pytest.fixture(scope="module")
def model() -> Any:
    attention: Any = [[["global", "local"], 1]]
    sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": attention}
    places: dict[str, Any] = {"max_position_embeddings": 2048, "window_size": 256}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTNeoConfig(vocab_size=64, bos_token_id=2, eos_token_id=3, **sizes, **places)
        made: Any = GPTNeoForCausalLM(config)
        return made.eval()


@torch.no_grad()
def torch_logits(model: Any) -> Any:
    return model(torch.from_numpy(IDS)).logits.numpy()


def test_without_keys_and_values_the_graph_is_torchs(model: Any, tmp_path: Path) -> None:
    graph = export_model(model, tmp_path / "host.onnx", cache=False)
    logits = run(graph, {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})["logits"]
    assert relative_error(logits, torch_logits(model)) < 1e-4


def test_with_keys_and_values_the_graph_is_torchs(model: Any, tmp_path: Path) -> None:
    graph = export_model(model, tmp_path / "host.onnx")
    empty = np.empty((2, 4, 0, 8), np.float32)
    past = {f"past_key_values.{layer}.{part}": empty for layer in range(2) for part in ("key", "value")}
    logits = run(graph, {"input_ids": IDS, "attention_mask": np.ones_like(IDS), **past})["logits"]
    assert relative_error(logits, torch_logits(model)) < 1e-4
