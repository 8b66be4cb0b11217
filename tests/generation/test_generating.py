"""Answers of an exported GPT-2 with an SAE, alone and in a batch, compared with a torch model with hooks."""

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_weights
from deployed_model import D_SAE, deploy
from numpy.typing import NDArray
from tiny_host import HOOKS, torch_host
from written_by_torch import written

from sae_runtime import Edit, Model, load_model
from sae_runtime.core.gates import positions, spans
from sae_runtime.exports import witness
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Piece, Request
from sae_runtime.generation.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")

STRONG = [Edit.set(3, 60.0), Edit.ablate(7)]
OTHER = [Edit.add(11, 80.0), Edit.scale(5, 3.0)]
HUGE = [Edit.set(feature, 3e38) for feature in range(60)]  # together they overflow float32
PROMPTS = ["w1 w2 w3", "w7", "w30 w2 w9 w9 w4 w1 w0 w22", "w5 w6", "w11 w12 w13 w14 w15"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Model:
    folder = tmp_path_factory.mktemp("writers") / "model"
    return load_model(deploy(folder, "gpt2", {"bundle": bundle_of("mutual", D_SAE, 4)}), threads=1)


def by_torch(prompt: str, steps: int, plan: Any) -> tuple[list[int], list[NDArray[np.float64]]]:
    weights = make_weights(D_SAE, "mutual")

    def features(x: NDArray[np.float64]) -> NDArray[np.float64]:
        z = witness.pre_activations(weights, x)
        return np.where(witness.threshold(z, weights["threshold"]).kept, z, 0)

    ids = [int(word[1:]) for word in prompt.split()]
    return written(torch_host("gpt2"), HOOKS["gpt2"], weights, features, ids, steps, plan)


def always(edits: Sequence[Edit], length: int) -> Any:
    return lambda step: (edits, [1.0] * (1 if step else length))


def request(model: Model, prompt: str, most: int, **settings: Any) -> Request:
    tokens = model.tokenizer.encode([prompt])[0]
    return Request(tokens, model.tokenizer.stream(), most=most, **settings)


def loop_of(model: Model) -> Loop:
    answer = model.generate("w1")  # opens the decoder
    answer.close()
    assert model._decoder is not None
    return Loop(model._decoder)


def ids_of(model: Model, prompt: str, edits: Any = (), most: int = 12, **settings: Any) -> list[int]:
    answer = model.generate(prompt, edits, max_new_tokens=most, **settings)
    list(answer)
    return answer.ids


@pytest.mark.parametrize("edits", [[], STRONG, OTHER])
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_an_answer_and_its_features_are_those_of_a_torch_hook(model: Model, prompt: str, edits: list[Edit]) -> None:
    answer = model.generate(prompt, edits, max_new_tokens=10, features=True)
    pieces = list(answer)
    ids, seen = by_torch(prompt, 10, always(edits, len(prompt.split())))
    end = next((n for n, piece in enumerate(pieces) if piece.finished == "end"), 9)
    assert answer.ids == ids[: end + 1] and pieces[-1].finished in ("end", "length")
    for piece, f in zip(pieces, seen, strict=False):
        np.testing.assert_allclose(piece.features["sae"].to_dense(), f, atol=1e-4 * max(f.max(), 1))
    assert "".join(map(str, pieces)) == answer.text == model.tokenizer.decode(answer.ids)


@pytest.mark.parametrize(
    ("gate", "of_prompt", "of_answer"),
    [
        ("prompt", [1, 1, 1, 1], [0, 0, 0]),
        ("generated", [0, 0, 0, 0], [1, 1, 1]),
        ("answer", [0, 0, 0, 1], [1, 1, 1]),
        ("last_prompt", [0, 0, 0, 1], [0, 0, 0]),
        ({0, 2, 5}, [1, 0, 1, 0], [0, 1, 0]),
        (positions(3), [0, 0, 0, 1], [0, 0, 0]),
        (spans((3, 8)), [0, 1, 1, 0], [0, 0, 0]),
        ("text", [1, 1, 1, 1], [1, 1, 1]),
    ],
)
def test_a_gate_chooses_tokens_of_prompt_and_answer(model: Model, gate: Any, of_prompt: Any, of_answer: Any) -> None:
    prompt = "w1 w2 w3 w4"

    def plan(step: int) -> tuple[list[Edit], list[float]]:
        return STRONG, of_prompt if step == 0 else [of_answer[min(step - 1, 2)]]

    assert ids_of(model, prompt, STRONG, most=4, gate=gate) == by_torch(prompt, 4, plan)[0]


def test_the_gates_lead_to_different_answers(model: Model) -> None:
    answers = {gate: tuple(ids_of(model, "w1 w2 w3 w4", STRONG, gate=gate)) for gate in ("all", "prompt", "generated")}
    answers["none"] = tuple(ids_of(model, "w1 w2 w3 w4"))
    assert len(set(answers.values())) >= 3


def test_edits_that_are_set_on_the_way_count_from_the_next_token(model: Model) -> None:
    schedule = [[], [], STRONG, STRONG, OTHER, OTHER, [], []]
    answer = model.generate("w1 w2 w3", max_new_tokens=8)
    for edits in schedule:
        answer.edits = edits
        next(answer)
    assert answer.edits == []
    expected, _ = by_torch("w1 w2 w3", 8, lambda step: (schedule[step], [1.0] * (1 if step else 3)))
    assert answer.ids == expected and expected != by_torch("w1 w2 w3", 8, always([], 3))[0]
    with pytest.raises(ValueError, match="feature 150 does not exist"):
        answer.edits = Edit.ablate(150)
    assert answer.edits == []


def test_requests_join_and_leave_and_are_answered_as_if_alone(model: Model) -> None:
    asked: list[tuple[str, int, dict[str, Any]]] = [
        (PROMPTS[0], 14, {}),
        (PROMPTS[1], 5, {"edits": {"sae": STRONG}}),
        (PROMPTS[2], 9, {"edits": {"sae": OTHER}, "gate": "generated"}),
        (PROMPTS[3], 12, {"sampling": Sampling(temperature=50.0, seed=7)}),
        (PROMPTS[4], 3, {"features": True}),
        (PROMPTS[2], 11, {"sampling": Sampling(temperature=40.0, top_p=0.9, seed=8), "edits": {"sae": STRONG}}),
    ]

    def run(joins: Sequence[int]) -> tuple[list[list[int]], list[list[Piece]]]:
        loop, requests = loop_of(model), [request(model, prompt, most, **more) for prompt, most, more in asked]
        pieces: dict[int, list[Piece]] = {id(one): [] for one in requests}
        step = 0
        while step <= max(joins) or len(loop):
            for one, joined in zip(requests, joins, strict=True):
                if joined == step:
                    loop.add(one)
            for one, piece in loop.step():
                assert isinstance(piece, Piece)
                pieces[id(one)].append(piece)
            step += 1
        return [one.ids for one in requests], [pieces[id(one)] for one in requests]

    alone, own = run([0, 20, 40, 60, 80, 100])
    for joins in ([0] * 6, [0, 2, 2, 3, 7, 9], [9, 0, 4, 1, 2, 3]):
        ids, pieces = run(joins)
        assert ids == alone
        for one, other in zip(pieces[4], own[4], strict=True):
            f, expected = one.features["sae"].to_dense(), other.features["sae"].to_dense()
            np.testing.assert_allclose(f, expected, atol=1e-4 * max(expected.max(), 1))
        assert not any(piece.features for number in (0, 1, 2, 3, 5) for piece in pieces[number])
    assert [len(ids) for ids in alone] == [14, 5, 9, 12, 3, 11]


def test_a_request_leaves_before_its_end(model: Model) -> None:
    loop, (first, second, third) = loop_of(model), [request(model, prompt, 9) for prompt in PROMPTS[:3]]
    for one in (first, second, third):
        loop.add(one)
    for _ in range(3):
        loop.step()
    loop.remove(second)
    loop.remove(second)
    while len(loop):
        loop.step()
    assert len(second.ids) == 3
    for one, prompt in ((first, PROMPTS[0]), (third, PROMPTS[2])):
        assert one.ids == by_torch(prompt, 9, always([], len(prompt.split())))[0]


def test_numbers_that_overflow_end_their_request_alone(model: Model) -> None:
    loop, well = loop_of(model), [request(model, prompt, 8) for prompt in PROMPTS[:2]]
    ill, later = (request(model, PROMPTS[2], 8) for _ in range(2))
    for one in (well[0], ill, later, well[1]):
        loop.add(one)
    loop.step()
    loop.edit(ill, {"sae": HUGE})
    failed = [(one, got) for one, got in loop.step() if isinstance(got, Exception)]
    assert [one for one, _ in failed] == [ill] and "token 8 of a request are NaN, infinite" in str(failed[0][1])
    assert "its edits make the model's numbers overflow" in str(failed[0][1])
    joined = request(model, PROMPTS[4], 8)  # takes the place
    loop.add(joined)
    while len(loop):
        assert not any(isinstance(got, Exception) for _, got in loop.step())
    for one, prompt in zip([*well, later, joined], [*PROMPTS[:3], PROMPTS[4]], strict=True):
        assert one.ids == ids_of_torch(prompt, 8)
    answer = model.generate("w1", HUGE)
    with pytest.raises(ValueError, match="NaN, infinite or all equal"):
        next(answer)
    assert list(answer) == []


def ids_of_torch(prompt: str, steps: int) -> list[int]:
    return by_torch(prompt, steps, always([], len(prompt.split())))[0]


def test_the_same_seed_gives_the_same_text_with_others_or_without(model: Model) -> None:
    settings: dict[str, Any] = {"temperature": 60.0, "top_p": 0.95, "seed": 3}
    one, same = ids_of(model, "w1 w2", **settings), ids_of(model, "w1 w2", **settings)
    assert one == same != ids_of(model, "w1 w2", **settings | {"seed": 4})
    loop, own = loop_of(model), request(model, "w1 w2", 12, sampling=Sampling(60.0, 0.95, None, 3))
    for prompt in PROMPTS:
        loop.add(request(model, prompt, 20, sampling=Sampling(60.0)))
    loop.step()
    loop.add(own)
    while len(loop):
        loop.step()
    assert own.ids[: len(one)] == one


def test_an_answer_ends_at_a_stop_string_that_is_not_shown(model: Model) -> None:
    whole = model.generate("w1 w2 w3", max_new_tokens=10)
    list(whole)
    words = whole.text.split()
    stop = words[2]
    answer = model.generate("w1 w2 w3", max_new_tokens=10, stop=[f"{stop}", "never"])
    pieces = list(answer)
    assert pieces[-1].finished == answer.finished == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert all(stop not in piece.text for piece in pieces)


def test_an_answer_ends_with_the_context_of_the_model(model: Model) -> None:
    words = " ".join(["w1 w2"] * 30)
    pieces = list(model.generate(words, max_new_tokens=100))
    assert pieces[-1].finished == "length" and len(pieces) == 4  # 64 tokens
    with pytest.raises(ValueError, match="the prompt has 64 tokens, and the model's context holds 64 with the answer"):
        model.generate(words + " w1 w2 w3 w4")


def test_a_long_prompt_in_chunks_is_answered_as_in_one_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    plain = model.generate(" ".join(["w1 w2 w3"] * 9), STRONG, max_new_tokens=5, features=True, gate="prompt")
    pieces, decoder = list(plain), model._decoder
    assert decoder is not None
    monkeypatch.setattr(model, "_decoder", dataclasses.replace(decoder, chunk=10))
    cut = model.generate(" ".join(["w1 w2 w3"] * 9), STRONG, max_new_tokens=5, features=True, gate="prompt")
    for one, other in zip(cut, pieces, strict=True):
        assert (one.id, one.text, one.finished) == (other.id, other.text, other.finished)
        f, expected = one.features["sae"].to_dense(), other.features["sae"].to_dense()
        np.testing.assert_allclose(f, expected, atol=1e-4 * expected.max())


def test_threads_share_a_model(model: Model) -> None:
    expected = [ids_of(model, prompt, STRONG) for prompt in PROMPTS]
    got: list[Any] = [None] * len(PROMPTS)

    def work(number: int) -> None:
        got[number] = [ids_of(model, PROMPTS[number], STRONG) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[ids] * 3 for ids in expected]


def test_an_answer_that_is_dropped_frees_its_memory(model: Model) -> None:
    answer = model.generate("w1 w2 w3", max_new_tokens=50)
    next(answer)
    cache = weakref.ref(answer._loop._groups[0].cache)
    assert cache() is not None
    del answer
    gc.collect()
    assert cache() is None
    ended = model.generate("w1 w2 w3", max_new_tokens=2)
    list(ended)
    assert len(ended._loop) == 0 and not ended._loop._groups
    closed = model.generate("w1 w2 w3")
    next(closed)
    closed.close()
    assert list(closed) == [] and closed.finished is None


def test_an_empty_prompt_is_refused_where_no_token_begins_a_text(model: Model) -> None:
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        model.generate("")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ["w1"]}, "a prompt is a text or a list of messages"),
        ({"prompt": b"w1"}, "a prompt is a text or a list of messages"),
        ({"prompt": []}, "a prompt is a text or a list of messages"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 on, got 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a whole number"),
        ({"stop": [""]}, "stop must be strings that are not empty"),
        ({"stop": [3]}, "stop must be strings"),
        ({"stop": 3}, "stop must be strings that are not empty, got 3"),
        ({"stop": None}, "stop must be strings"),
        ({"chat": 3}, "chat must be a mapping of settings of the chat template, got 3"),
        ({"gate": "sometimes"}, "a gate is"),
        ({"temperature": -1}, "temperature must be 0 to 1,000"),
        ({"edits": Edit.set(150, 1.0)}, "feature 150 does not exist"),
        ({"edits": {"other": Edit.set(1, 1.0)}}, "other"),
        ({"edits": [Edit.set(1, 1.0), Edit.ablate(1)]}, "feature 1 is edited twice"),
        ({"edits": [Edit.add(1, 1.0, only_active=True), Edit.ablate(2)]}, "only where it is active"),
    ],
)
def test_bad_settings_are_refused_at_once(model: Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        model.generate(**{"prompt": "w1", **settings})
    assert "\n" not in str(error.value)


def test_others_go_on_while_a_long_prompt_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_runtime.generation import loop as module

    prompts = [PROMPTS[0], " ".join(["w1 w2 w3"] * 9), " ".join(["w4 w9"] * 12), PROMPTS[1]]
    expected = [ids_of(model, prompt, STRONG, most=6) for prompt in prompts]
    monkeypatch.setattr(module, "TOKENS", 8)
    loop, requests = loop_of(model), [request(model, prompt, 6, edits={"sae": STRONG}) for prompt in prompts]
    for one in requests:
        loop.add(one)
    lengths = []
    while len(loop):
        loop.step()
        lengths.append([len(one.ids) for one in requests])
    assert [one.ids for one in requests] == expected
    assert lengths[2] == [3, 0, 0, 3] and lengths[3] == [4, 1, 0, 4], "27 tokens are four parts, then come the others"
    again = request(model, prompts[1], 6)
    loop.add(again)
    loop.step()
    loop.remove(again)
    assert len(loop) == 0
