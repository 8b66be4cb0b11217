"""Which tokens `attach` edits under a gate, while a model generates in the ways that transformers offers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cases_common import Weights, hooked
from cases_hosts import random_sae

from sae_runtime import Edit
from sae_runtime.train import attach

pytestmark = pytest.mark.usefixtures("one_thread")

D_IN, FEATURE, AMOUNT = 32, 7, 5.0
IDS = torch.tensor([[5, 6, 7, 8]])
PADDED = torch.tensor([[2, 2, 5, 6]])
PADDED_MASK = torch.tensor([[0, 0, 1, 1]])
STEPS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 2}
Gate = Any


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("gates") / "sae"
    return path, random_sae(path)


@pytest.fixture(scope="module")
def llama() -> Any:
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 1, "intermediate_size": 32}
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.LlamaConfig(vocab_size=60, num_attention_heads=2, max_position_embeddings=64, **sizes, **ids)
    model = still(transformers.LlamaForCausalLM, config)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 40
    return model


@pytest.fixture(scope="module")
def t5() -> Any:
    sizes: dict[str, Any] = {"d_model": D_IN, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    ids: dict[str, Any] = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    model = still(transformers.T5ForConditionalGeneration, transformers.T5Config(vocab_size=60, **sizes, **ids))
    with torch.no_grad():
        model.shared.weight *= 5
    return model


def still(kind: Any, config: Any) -> Any:
    """A model with random weights, always the same, without dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


def generation(
    model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None, **settings: Any
) -> Callable[[], Any]:
    """A call that lets the model generate without an end."""
    mask = torch.ones_like(ids) if mask is None else mask
    return lambda: model.generate(ids, attention_mask=mask, **STEPS | settings)


def edited_tokens(
    model: Any, hook: str, sae: tuple[Path, Weights], gate: Gate, call: Callable[[], object]
) -> list[list[list[int]]]:
    """Which tokens of each call of the module an edit changed, 1 or 0, by torch hooks before and after `attach`."""
    path, weights = sae
    after: list[Any] = []

    def edit_and_call() -> None:
        with attach(model, hook, path, [Edit.add(FEATURE, AMOUNT)], gate=gate):
            after.extend(hooked(model.base_model, hook, call))

    before = hooked(model.base_model, hook, edit_and_call)
    change = AMOUNT * weights["W_dec"][FEATURE]
    pairs = zip(before, after, strict=True)
    return [(abs(y - x - change).max(axis=-1) < 1e-3).astype(int).tolist() for x, y in pairs]


def test_with_a_cache_the_gate_generated_edits_the_new_tokens(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "generated", call) == [[[0, 0, 0, 0]], [[1]]]


def test_with_a_cache_the_gate_prompt_edits_the_prompt(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "prompt", call) == [[[1, 1, 1, 1]], [[0]]]


def test_with_padding_on_the_left_position_0_is_the_first_real_token(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, PADDED, PADDED_MASK, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, [0], call) == [[[0, 0, 1, 0]], [[0]]]


def test_without_a_cache_the_gate_generated_edits_the_new_tokens(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, use_cache=False, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "generated", call) == [[[0, 0, 0, 0]], [[0, 0, 0, 0, 1]]]


def test_without_a_cache_the_gate_prompt_edits_the_prompt_alone(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, use_cache=False, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "prompt", call) == [[[1, 1, 1, 1]], [[1, 1, 1, 1, 0]]]


def test_with_a_prompt_in_chunks_the_gate_prompt_edits_all_chunks(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, prefill_chunk_size=2, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "prompt", call) == [[[1, 1]], [[1, 1]], [[0]]]


def test_with_a_prompt_in_chunks_the_gate_generated_edits_no_chunk(llama: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(llama, prefill_chunk_size=2, pad_token_id=2, eos_token_id=None)
    assert edited_tokens(llama, "layers.0", sae, "generated", call) == [[[0, 0]], [[0, 0]], [[1]]]


def test_with_a_static_cache_position_0_is_the_first_real_token(llama: Any, sae: tuple[Path, Weights]) -> None:
    settings: dict[str, Any] = {"cache_implementation": "static", "pad_token_id": 2, "eos_token_id": None}
    call = generation(llama, PADDED, PADDED_MASK, **settings)
    assert edited_tokens(llama, "layers.0", sae, [0], call) == [[[0, 0, 1, 0]], [[0]]]


def test_in_an_encoder_the_gate_prompt_edits_the_first_text(t5: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(t5, max_new_tokens=3)
    assert edited_tokens(t5, "encoder.block.0", sae, "prompt", call) == [[[1, 1, 1, 1]]]


def test_in_an_encoder_the_gate_prompt_edits_the_second_text_too(t5: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(t5, max_new_tokens=3)
    twice = edited_tokens(t5, "encoder.block.0", sae, "prompt", lambda: (call(), call()))
    assert twice == [[[1, 1, 1, 1]], [[1, 1, 1, 1]]]


def test_in_a_decoder_positions_are_its_own_and_not_the_encoders(t5: Any, sae: tuple[Path, Weights]) -> None:
    call = generation(t5, PADDED * PADDED_MASK, PADDED_MASK, max_new_tokens=3)
    assert edited_tokens(t5, "decoder.block.0", sae, [0], call) == [[[1]], [[0]], [[0]]]


def test_in_a_state_space_model_the_gate_generated_edits_the_new_tokens(sae: tuple[Path, Weights]) -> None:
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 1, "state_size": 4}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    mamba = still(transformers.MambaForCausalLM, transformers.MambaConfig(vocab_size=60, **sizes, **ids))
    call = generation(mamba)
    assert edited_tokens(mamba, "layers.0", sae, "generated", call) == [[[0, 0, 0, 0]], [[1]]]


def test_a_compiled_model_that_has_run_is_edited_all_the_same(llama: Any, sae: tuple[Path, Weights]) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(llama, backend="eager")
    with torch.no_grad():
        plain = compiled(input_ids=IDS).logits
        with attach(llama, "layers.0", sae[0], [Edit.set(FEATURE, 50.0)]) as features:
            moved = compiled(input_ids=IDS).logits - plain
    assert len(features) == 1 and moved.abs().max() > 0
