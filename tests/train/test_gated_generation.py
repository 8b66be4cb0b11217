"""Every gate in many families of models and ways to generate: the edited tokens are those that counting gives."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from cases_common import Weights
from cases_hosts import random_sae
from gated import D_IN, again_and_again, edited_tokens, expected_tokens, in_steps, some_ids, still

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

GATES: list[Any] = ["all", "prompt", "last_prompt", "generated", "answer", [0, 3, 5]]
LEFT, RIGHT, ONE = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], [[1, 1, 1, 1]]
IDS: dict[str, Any] = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TWO: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 2, **IDS}
USUAL: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, **TWO}
STATE: dict[str, Any] = {"state_size": 4, **TWO}
SEQ: dict[str, Any] = {"decoder_start_token_id": 1, **IDS}
BART: dict[str, Any] = {"d_model": D_IN, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **SEQ}

DECODERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "gpt2": (
        "h.0",
        lambda: still(hf.GPT2LMHeadModel, hf.GPT2Config(n_embd=D_IN, n_layer=2, n_head=2, n_positions=64, **IDS), 20),
    ),
    "opt": (
        "decoder.layers.1",
        lambda: still(
            hf.OPTForCausalLM,
            hf.OPTConfig(
                ffn_dim=32, num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=D_IN, **TWO
            ),
            20,
        ),
    ),
    "llama": ("layers.0", lambda: still(hf.LlamaForCausalLM, hf.LlamaConfig(**USUAL), 40)),
    "gemma2": (
        "layers.1",
        lambda: still(hf.Gemma2ForCausalLM, hf.Gemma2Config(head_dim=16, sliding_window=3, **USUAL), 10),
    ),
    "falcon": ("h.1", lambda: still(hf.FalconForCausalLM, hf.FalconConfig(num_attention_heads=2, **TWO), 40)),
    "jamba": (
        "layers.0",
        lambda: still(
            hf.JambaForCausalLM,
            hf.JambaConfig(
                attn_layer_period=2,
                attn_layer_offset=1,
                num_experts=2,
                mamba_d_state=4,
                use_mamba_kernels=False,
                **USUAL,
            ),
            10,
        ),
    ),
    "recurrent gemma": (
        "layers.0",
        lambda: still(
            hf.RecurrentGemmaForCausalLM,
            hf.RecurrentGemmaConfig(lru_width=D_IN, attention_window_size=4, **USUAL | {"num_hidden_layers": 3}),
            10,
        ),
    ),
    "mamba2": (
        "layers.0",
        lambda: still(
            hf.Mamba2ForCausalLM, hf.Mamba2Config(num_heads=4, head_dim=16, n_groups=1, chunk_size=4, **STATE), 10
        ),
    ),
    "rwkv": (
        "blocks.0",
        lambda: still(hf.RwkvForCausalLM, hf.RwkvConfig(attention_hidden_size=D_IN, context_length=64, **TWO), 10),
    ),
}
Masks = Sequence[Sequence[int]]
Way = tuple[Masks, Sequence[Sequence[int]], dict[str, Any]]
WAYS: dict[str, Way] = {
    "one request": (ONE, in_steps(4, 3), {}),
    "padding on the left": (LEFT, in_steps(5, 3), {}),
    "padding on the right": (RIGHT, in_steps(5, 3), {}),
    "no cache": (LEFT, again_and_again(5, 3), {"use_cache": False}),
    "static cache": (LEFT, in_steps(5, 3), {"cache_implementation": "static"}),
    "prompt in chunks": (
        LEFT,
        [range(2), range(2, 4), range(4, 5), range(5, 6), range(6, 7)],
        {"prefill_chunk_size": 2},
    ),
    "beams": (LEFT, in_steps(5, 3), {"num_beams": 2}),
    "beams without a cache": (LEFT, again_and_again(5, 3), {"num_beams": 2, "use_cache": False}),
    "samples": (RIGHT, in_steps(5, 3), {"num_return_sequences": 3, "do_sample": True}),
}
NOT_BY_TRANSFORMERS = {("recurrent gemma", "prompt in chunks"), ("mamba2", "prompt in chunks")}
NOT_BY_TRANSFORMERS |= {("rwkv", way) for way in WAYS if way != "one request"}  # its batches are broken in 5.23


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    path = tmp_path_factory.mktemp("gated") / "sae"
    return path, random_sae(path)


def generation(model: Any, masks: Masks, **settings: Any) -> Callable[[], Any]:
    ids, mask = some_ids(masks)
    usual: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=mask, **usual | settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_gate_means_the_tokens_that_counting_gives(sae: tuple[Path, Weights], family: str, way: str) -> None:
    if (family, way) in NOT_BY_TRANSFORMERS:
        pytest.skip("transformers does not generate so")
    (hook, build), (masks, columns, settings) = DECODERS[family], WAYS[way]
    model = build()
    rows = max(settings.get(name, 1) for name in ("num_beams", "num_return_sequences"))
    repeated = [mask for mask in masks for _ in range(rows)]
    for gate in GATES:
        got = edited_tokens(model, hook, sae, generation(model, masks, **settings), gate=gate)
        assert got == expected_tokens(gate, repeated, columns), gate


def t5() -> Any:
    sizes: dict[str, Any] = {"d_model": D_IN, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return still(hf.T5ForConditionalGeneration, hf.T5Config(**sizes, **SEQ), 5)


def bart() -> Any:
    return still(hf.BartForConditionalGeneration, hf.BartConfig(forced_eos_token_id=None, **BART), 20)


SEQ2SEQ = {"t5": (t5, "encoder.block.0", "decoder.block.0"), "bart": (bart, "encoder.layers.0", "decoder.layers.0")}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_a_decoder_counts_its_own_tokens(sae: tuple[Path, Weights], family: str, beams: int, use_cache: bool) -> None:
    build, _, hook = SEQ2SEQ[family]
    model, mask = build(), torch.tensor([[1, 1, 1], [0, 1, 1]])
    begin, ways = some_ids(mask.tolist())[0] + (mask == 0), in_steps if use_cache else again_and_again
    settings: dict[str, Any] = {"num_beams": beams, "use_cache": use_cache}
    for gate in GATES:
        call = generation(model, LEFT, **settings)
        twice = edited_tokens(model, hook, sae, lambda call=call: (call(), call()), gate=gate)  # type: ignore[misc]
        assert twice == 2 * expected_tokens(gate, [[1]] * 2 * beams, ways(1, 3)), gate
        call = generation(model, LEFT, decoder_input_ids=begin, decoder_attention_mask=mask, **settings)
        expected = expected_tokens(gate, np.repeat(mask.tolist(), beams, axis=0).tolist(), ways(3, 3))
        assert edited_tokens(model, hook, sae, call, gate=gate) == expected, gate


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_an_encoder_reads_nothing_but_prompt(sae: tuple[Path, Weights], family: str) -> None:
    build, hook, _ = SEQ2SEQ[family]
    model = build()
    ids, mask = some_ids(LEFT)
    calls: list[Callable[[], Any]] = [generation(model, LEFT), lambda: model.get_encoder()(ids, attention_mask=mask)]
    calls.append(lambda: model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids))
    for gate in GATES:
        one = expected_tokens(gate, LEFT, [range(5)])
        for call in calls:
            got = edited_tokens(model, hook, sae, lambda call=call: (call(), call()), gate=gate)  # type: ignore[misc]
            assert got == one + one, gate


def test_whisper_reads_sound_in_its_encoder_and_tokens_in_its_decoder(sae: tuple[Path, Weights]) -> None:
    config = hf.WhisperConfig(
        **BART | {"num_mel_bins": 4, "max_source_positions": 10, "max_target_positions": 32, "vocab_size": 60}
    )
    model = still(hf.WhisperForConditionalGeneration, config, 20)
    model.generation_config = hf.GenerationConfig(**SEQ, begin_suppress_tokens=None, suppress_tokens=None)  # type: ignore[no-untyped-call]
    sound = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 20)).astype(np.float32))
    begin = torch.tensor([[5, 6, 7], [8, 9, 10]])

    def call() -> Any:
        return model.generate(
            sound, decoder_input_ids=begin, max_new_tokens=3, eos_token_id=None, return_timestamps=False
        )

    for gate in GATES:
        twice = edited_tokens(model, "decoder.layers.0", sae, lambda: (call(), call()), gate=gate)
        assert twice == 2 * expected_tokens(gate, [[1] * 3] * 2, in_steps(3, 3)), gate
        sounds = edited_tokens(model, "encoder.layers.0", sae, lambda: (call(), call()), gate=gate)
        assert sounds == 2 * expected_tokens(gate, [[1] * 10] * 2, [range(10)]), gate
