"""Requests that join and leave, for graphs of every way to keep keys and values: each is answered as if alone.

Alone they are answered as torch does with hooks that edit. genai's builds also answer as genai's Generator.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import Weights, true_features
from cases_hosts import random_sae
from deployed_model import deploy, write_tokenizer
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from written_by_genai import written_by_genai
from written_by_torch import written

from sae_runtime import Edit, Model, load_model
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.generation.caches import Columns, Rows
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Request

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]  # the exporters' own

D_SAE, WORDS = 160, 41
LLAMA: dict[str, Any] = {
    **{"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.4},
    **{"bos_token_id": 40, "eos_token_id": 40, "pad_token_id": 40, "tie_word_embeddings": False},
}
PROMPTS = ["w1 w2 w3", "w7", "w30 w2 w9 w9 w4 w1 w0 w22 w23 w24 w25", "w5 w6", "w11 w12 w13 w14 w15"]
STRONG = [Edit.set(3, 6.0), Edit.ablate(7), Edit.scale(9, 3.0)]
JOINS = [(0, 0, 0, 0, 0), (0, 2, 3, 3, 7), (6, 0, 4, 1, 2)]


@dataclass(frozen=True)
class Writer:
    """A deployed model, the torch model of the same weights where there is one, and where the SAE is."""

    model: Model
    torch: Any
    hook: str
    weights: Weights


def causal(kind: str, **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        load: Any = AutoModelForCausalLM.from_config
        made = load(CONFIG_MAPPING[kind](**settings))
    return made.eval()


def ours(home: Path, model: Any, hook: str, **settings: Any) -> Writer:
    """Our own export, spliced without --required."""
    model.config.save_pretrained(home / "host")
    graph = export_model(model, home / "host" / "host.onnx", **settings)
    weights = random_sae(home / "sae", 32, D_SAE, slots=4)
    splice(graph, [Splice(bundle=home / "sae", hook=hook)])
    write_tokenizer(home / "host", "gpt2")
    return Writer(load_model(home / "host", threads=1), model, hook, weights)


def in_half(home: Path) -> Writer:
    """Keys and values of float16, which numpy holds for us."""
    made = ours(home, causal("llama", **LLAMA).half(), "model.layers.0")
    return dataclasses.replace(made, torch=None)


def rounding_by_batch(home: Path) -> Writer:
    """A host whose int8 products round by the range of the whole batch."""
    model = causal("llama", **LLAMA)
    model.config.save_pretrained(home / "host")
    plain = export_model(model, home / "plain" / "host.onnx")
    quantize_dynamic(plain, home / "host" / "host.onnx")
    weights = random_sae(home / "sae", 32, D_SAE, slots=4)
    splice(home / "host" / "host.onnx", [Splice(bundle=home / "sae", hook="model.layers.0")])
    write_tokenizer(home / "host", "gpt2")
    return Writer(load_model(home / "host", threads=1), None, "model.layers.0", weights)


def genais(home: Path, precision: str, *, required: bool = True) -> Writer:
    """genai's build of a Llama."""
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    model = causal("llama", **LLAMA)
    model.save_pretrained(home / "model")
    write_tokenizer(home / "model", "gpt2")
    task = ("", str(home / "model"), str(home / "host"), precision, "cpu", str(home / "cache"))
    builder.create_model(*task, **builder.parse_extra_options(*task, []))
    weights = random_sae(home / "sae", 32, D_SAE, slots=4)
    one = Splice(bundle=home / "sae", hook="model.layers.0", required=required)
    splice(home / "host" / "model.onnx", [one], home / "spliced")
    shutil.copy(home / "model" / "tokenizer.json", home / "spliced")
    return Writer(
        load_model(home / "spliced", threads=1), model if precision == "fp32" else None, one.hook or "", weights
    )


GPT2: dict[str, Any] = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"initializer_range": 0.4, "bos_token_id": 40, "eos_token_id": 40}
BLOOM: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
BLOOM |= {"bos_token_id": 40, "eos_token_id": 40, "pad_token_id": 40}
MAMBA: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
MAMBA |= {"initializer_range": 0.4, "bos_token_id": 40, "eos_token_id": 40, "pad_token_id": 40}
WRITERS: dict[str, Callable[[Path], Writer]] = {
    "llama": lambda home: ours(home, causal("llama", **LLAMA), "model.layers.0"),
    "gpt2": lambda home: ours(home, causal("gpt2", **GPT2), "transformer.h.0"),
    "sliding window": lambda home: ours(home, causal("mistral", **LLAMA, sliding_window=4), "model.layers.0"),
    "bloom": lambda home: ours(home, causal("bloom", **BLOOM), "transformer.h.0"),
    "float16": in_half,
    "int8 by batch": rounding_by_batch,
    "gpt2, no cache": lambda home: ours(home, causal("gpt2", **GPT2), "transformer.h.0", cache=False),
    "mamba, no cache": lambda home: ours(home, causal("mamba", **MAMBA), "backbone.layers.0", cache=False),
    "genai fp32": lambda home: genais(home, "fp32"),
    "genai fp32, optional": lambda home: genais(home, "fp32", required=False),
    "genai int4": lambda home: genais(home, "int4"),
}


@pytest.fixture(scope="module", params=WRITERS)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return WRITERS[request.param](tmp_path_factory.mktemp("writer"))


def answers(model: Model, joins: Sequence[int]) -> list[list[int]]:
    """The answers to `PROMPTS` of different lengths and edits, which join at these steps."""
    model.generate("w1").close()
    assert model._decoder is not None
    loop, requests = Loop(model._decoder), []
    for number, prompt in enumerate(PROMPTS):
        edits = {"sae": STRONG} if number % 2 else {}
        tokens, stream = model.tokenizer.encode([prompt])[0], model.tokenizer.stream()
        gate: Any = "generated" if number == 3 else "all"
        requests.append(Request(tokens, stream, edits=edits, gate=gate, most=(14, 5, 9, 12, 10)[number]))
    step = 0
    while step <= max(joins) or len(loop):
        for one, joined in zip(requests, joins, strict=True):
            if joined == step:
                loop.add(one)
        assert not any(isinstance(got, Exception) for _, got in loop.step())
        step += 1
    return [one.ids for one in requests]


def features_of(writer: Writer) -> Any:
    return lambda x: true_features(writer.weights, x)


def by_torch(writer: Writer, number: int, most: int) -> list[int]:
    edits = STRONG if number % 2 else []
    ids = [int(word[1:]) for word in PROMPTS[number].split()]

    def plan(step: int) -> tuple[list[Edit], list[float]]:
        return edits, [float(number != 3)] * len(ids) if step == 0 else [1.0]

    cached = bool(writer.model._decoder.inputs.past)  # type: ignore[union-attr]
    return written(
        writer.torch,
        writer.hook,
        writer.weights,
        features_of(writer),
        ids,
        most,
        plan,
        cache=cached,
    )[0]


def test_requests_that_join_and_leave_are_answered_as_if_alone(writer: Writer) -> None:
    alone = answers(writer.model, (0, 20, 40, 60, 80))
    for joins in JOINS:
        assert answers(writer.model, joins) == alone
    assert len({tuple(ids[:4]) for ids in alone}) > 2
    if writer.torch is not None:
        assert alone == [by_torch(writer, number, len(ids)) for number, ids in enumerate(alone)]


def test_features_of_each_step_are_those_of_torch(writer: Writer) -> None:
    if writer.torch is None:
        return
    pieces = list(writer.model.generate(PROMPTS[2], max_new_tokens=6, features=True))
    ids = [int(word[1:]) for word in PROMPTS[2].split()]
    _, seen = written(
        *(writer.torch, writer.hook, writer.weights, features_of(writer), ids, 6),
        lambda step: ([], []),
        cache=bool(writer.model._decoder.inputs.past),  # type: ignore[union-attr]
    )
    for piece, f in zip(pieces, seen, strict=True):
        np.testing.assert_allclose(piece.features["sae"].to_dense(), f, atol=1e-4 * f.max())


def test_edits_change_on_the_way_where_there_is_a_cache(writer: Writer) -> None:
    answer = writer.model.generate(PROMPTS[0], max_new_tokens=6)
    next(answer)
    if not writer.model._decoder.inputs.past:  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="so edits cannot change on the way"):
            answer.edits = STRONG
        return
    answer.edits = STRONG
    list(answer)
    if writer.torch is not None:
        ids = [int(word[1:]) for word in PROMPTS[0].split()]
        expected, _ = written(
            *(writer.torch, writer.hook, writer.weights, features_of(writer), ids, 6),
            lambda step: (STRONG if step else [], [1.0]),
        )
        assert answer.ids == expected


def test_the_graph_of_genai_keeps_rows_and_others_columns(writer: Writer) -> None:
    writer.model.generate("w1").close()
    assert writer.model._decoder is not None
    cache = writer.model._decoder.cache()
    if cache is not None:
        is_genais = (writer.model.layout.graph.parent / "genai_config.json").exists()
        assert isinstance(cache, Rows if is_genais else Columns)


def test_answers_are_those_of_genais_generator(writer: Writer) -> None:
    home = writer.model.layout.graph.parent
    if not (home / "genai_config.json").exists() or not writer.model._decoder.required:  # type: ignore[union-attr]
        return
    ids = [int(word[1:]) for word in PROMPTS[2].split()]
    for edits in ([], STRONG):
        answer = writer.model.generate(PROMPTS[2], edits, max_new_tokens=12)
        list(answer)
        assert answer.ids == written_by_genai(home, ids, edits, d_sae=D_SAE, count=12)


def test_models_that_write_no_text_are_refused(tmp_path: Path) -> None:
    encoder = load_model(deploy(tmp_path / "bert", "bert", []))
    with pytest.raises(ValueError, match="gives last_hidden_state and writes no text; generate needs a causal"):
        encoder.generate("w1")
    config = BertConfig(vocab_size=44, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    masked: Any = BertForMaskedLM(config)
    export_model(masked.eval(), tmp_path / "masked" / "host.onnx")
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path / "masked")
    write_tokenizer(tmp_path / "masked", "bert")
    with pytest.raises(ValueError, match="gives logits and writes no text"):
        load_model(tmp_path / "masked").generate("w1")
