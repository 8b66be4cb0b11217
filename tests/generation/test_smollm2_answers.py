"""SmolLM2-135M-Instruct: answers of genai's int4 and float32 builds, steered and not, against genai and transformers.

`make smollm2` makes the model; without it these tests skip themselves.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_hosts import random_weights
from transformers import AutoTokenizer, LlamaForCausalLM
from written_by_genai import written_by_genai

from sae_runtime import Edit, Model, load_model
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Request
from sae_runtime.train import attach

MODEL = Path(".venv/smollm2")
pytestmark = [
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="make smollm2"),
    pytest.mark.filterwarnings("ignore"),  # the builder's own
]

LAYER, D_IN, D_SAE, NEW = 10, 576, 1024, 24
TEXTS = ["Once upon a time there was a", "The capital of France is", "Open the file and"]
STEERED = [Edit.set(3, 30.0), Edit.add(8, 25.0)]
MESSAGES = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sae") / "sae"
    architecture = Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold")
    weights = random_weights(D_IN, D_SAE, 3.0)
    bundle.write(
        path, weights, Manifest(architecture=architecture, allocation=Allocation(kind="mutual", k=32.0), slots=64)
    )
    export(path)
    return path


@pytest.fixture(scope="module", params=["fp32", "int4"])
def model(request: pytest.FixtureRequest, sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    home = tmp_path_factory.mktemp("smollm2")
    task = ("", str(MODEL), str(home / "host"), request.param, "cpu", str(home / "cache"))
    builder.create_model(*task, **builder.parse_extra_options(*task, []))
    one = Splice(bundle=sae, hook=f"model.layers.{LAYER}", required=True)
    splice(home / "host" / "model.onnx", [one], home / "spliced")
    shutil.rmtree(home / "host")
    return load_model(home / "spliced")


def is_float(model: Model) -> bool:
    return "MatMulNBits" not in str(model.layout.graph.read_bytes()[:200_000])


def by_genai(model: Model, ids: Sequence[int], edits: list[Edit]) -> list[int]:
    return written_by_genai(model.layout.graph.parent, ids, edits, d_sae=D_SAE, count=NEW)


def by_transformers(sae: Path, text: str, edits: list[Edit], gate: Any) -> list[int]:
    live: Any = LlamaForCausalLM.from_pretrained(MODEL)
    live.eval()
    ids = AutoTokenizer.from_pretrained(MODEL)(text, return_tensors="pt")
    with attach(live, f"model.layers.{LAYER}", sae, edits, gate=gate), torch.no_grad():
        answer = live.generate(**ids, max_new_tokens=NEW, do_sample=False, pad_token_id=2)
    return answer[0, ids["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


def ids_of(model: Model, text: str, edits: Any = (), **settings: Any) -> list[int]:
    answer = model.generate(text, edits, max_new_tokens=NEW, **settings)
    list(answer)
    return answer.ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("edits", [[], STEERED], ids=["plain", "steered"])
def test_greedy_tokens_are_genais(model: Model, text: str, edits: list[Edit]) -> None:
    own, theirs = ids_of(model, text, edits), by_genai(model, model.tokenizer.encode([text])[0].ids.tolist(), edits)
    assert own == theirs[: len(own)]


@pytest.mark.parametrize("gate", ["all", "prompt", "generated", "answer"])
def test_float32_greedy_tokens_are_those_of_transformers_and_attach(model: Model, sae: Path, gate: str) -> None:
    if not is_float(model):
        pytest.skip("int4 weights are others")
    own = ids_of(model, TEXTS[0], STEERED, gate=gate)
    assert own == by_transformers(sae, TEXTS[0], STEERED, gate)
    assert own != ids_of(model, TEXTS[0])


def test_edits_are_switched_in_the_middle(model: Model) -> None:
    """The tokens up to the switch and the steered rest are read as a prompt of which the rest is steered."""
    answer = model.generate(TEXTS[0], max_new_tokens=NEW)
    for _ in range(8):
        next(answer)
    answer.edits = STEERED
    list(answer)
    assert answer.ids[:8] == ids_of(model, TEXTS[0])[:8]
    prompt = model.tokenizer.encode([TEXTS[0]])[0].ids.tolist()
    whole = [*prompt, *answer.ids]
    tokens = model.tokenizer.encode([model.tokenizer.decode(whole)])[0]
    if tokens.ids.tolist() != whole:
        pytest.skip("the text has other tokens")
    gate = set(range(len(prompt) + 7, len(whole) + NEW))
    other = model.generate(model.tokenizer.decode(whole[: len(prompt) + 8]), STEERED, gate=gate, max_new_tokens=NEW - 8)
    list(other)
    assert other.ids == answer.ids[8:]


def test_a_batch_of_texts_and_edits_is_answered_as_each_alone(model: Model) -> None:
    model.generate("a").close()
    assert model._decoder is not None
    loop, requests = Loop(model._decoder, end_ids=model.tokenizer.end_ids), []
    for number, text in enumerate(TEXTS):
        edits = {"sae": STEERED} if number % 2 else {}
        requests.append(Request(model.tokenizer.encode([text])[0], model.tokenizer.stream(), edits=edits, most=NEW))
        loop.add(requests[-1])
        loop.step()
    while len(loop):
        loop.step()
    for number, (text, one) in enumerate(zip(TEXTS, requests, strict=True)):
        assert one.ids == ids_of(model, text, STEERED if number % 2 else ())


def test_messages_are_answered_piece_by_piece(model: Model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    answer = model.generate(MESSAGES, max_new_tokens=40)
    pieces = list(answer)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert answer.ids[:NEW] == by_genai(model, prompt, [])[: len(answer.ids)]
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert pieces[-1].finished in ("end", "length") and len(pieces) == len(answer.ids)


def test_edits_that_overflow_are_told(model: Model) -> None:
    with pytest.raises(ValueError, match="NaN, infinite or all equal: its edits make"):
        ids_of(model, TEXTS[0], [Edit.set(feature, 3e38) for feature in range(200)])
