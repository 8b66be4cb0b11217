"""SmolLM2 in transformers with bundles of every kind, which the tests of vLLM share."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_bundles import KINDS, activations_of, write_bundle
from vllm_processes import MODEL, ROOT
from vllm_reference import Reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    home = tmp_path_factory.mktemp("saes")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    x = activations_of(model, tokenizer, (ROOT / "LICENSE").read_text()[:7000])
    return Reference(model, tokenizer, {kind: write_bundle(home / kind, kind, x) for kind in KINDS})
