"""Hosts whose MLP is a mixture of experts: exported, and equal to torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cases_common import relative_error
from tiny_host import run

from sae_runtime.exports.export_model import export_model

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {"Mixtral": "num_local_experts", "Qwen3Moe": "num_experts"}
IDS = np.random.default_rng(0).integers(4, 64, (2, 9))


def mixture(kind: str) -> Any:
    """A model of two layers, each with four experts of which a token takes two."""
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts: dict[str, Any] = {KINDS[kind]: 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **experts, max_position_embeddings=128)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_of_experts_gives_the_logits_of_torch(kind: str, tmp_path: Path) -> None:
    model = mixture(kind)
    graph = export_model(model, tmp_path / "host.onnx", cache=False)
    logits = run(graph, {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})["logits"]
    with torch.no_grad():
        assert relative_error(logits, model(torch.from_numpy(IDS)).logits.numpy()) < 1e-4
