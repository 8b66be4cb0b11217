"""One engine, several SAEs of every kind, requests of every kind together: transformers + `attach`, one by one."""

from typing import Any

import pytest
from vllm_bundles import D_SAE, KINDS
from vllm_processes import MODEL, Called, Raised, needs_vllm, settings_of
from vllm_reference import Reference, assert_answer, assert_read
from vllm_requests import TEXTS, active, chat, every_kind, of_sae

pytestmark = needs_vllm
EDITED = [kind for kind in KINDS if kind != "transcoder"]


@pytest.fixture(scope="module")
def engine(vllm_process: Called, reference: Reference) -> Called:
    vllm_process(
        "start", str(MODEL), settings_of([{"bundle": path, "name": n} for n, path in reference.bundles.items()])
    )
    return vllm_process


def test_twelve_requests_of_every_edit_and_gate(engine: Called, reference: Reference) -> None:
    requests = [reference.clear(one, ["threshold"]) for one in every_kind(reference, "threshold")]
    answers = engine("generate", [of_sae(request, "threshold") for request in requests])
    for got, request in zip(answers, requests, strict=True):
        assert_answer(got, request, reference, ["threshold"])
    plain = [reference.answer({**request, "sae": {}}, ["threshold"]).tokens for request in requests]
    edited = [i for i, request in enumerate(requests) if "sae_edits" in request["sae"]]
    assert all(answers[i]["tokens"] != [plain[i]] for i in edited), "an edit moves nothing; choose another"


def test_every_kind_of_sae(engine: Called, reference: Reference) -> None:
    asked = [(kind, reference.clear(every_kind(reference, kind)[i], [kind])) for kind in EDITED[1:] for i in (1, 2, 9)]
    answers = engine("generate", [of_sae(request, kind) for kind, request in asked])
    for got, (kind, request) in zip(answers, asked, strict=True):
        assert_answer(got, request, reference, [kind])


def test_a_transcoder_is_read(engine: Called, reference: Reference) -> None:
    requests = [{**one, "sae": {"sae_features": "all"}} for one in every_kind(reference, "threshold")[:2]]
    for got, request in zip(engine("generate", requests), requests, strict=True):
        assert_answer(got, request, reference, ["transcoder"])


def test_two_saes_of_one_hook_edit_one_after_the_other(engine: Called, reference: Reference) -> None:
    ids = reference.tokenizer(TEXTS[0])["input_ids"]
    edits = [
        {"feature": feature, "set": "x1.5", "sae": kind}
        for kind in ("layer", "threshold")
        for feature in active(reference, ids, kind)[3:5]
    ]
    request = {"ids": ids, "sae": {"sae_edits": edits, "sae_gate": "answer", "sae_features": "all"}}
    request = reference.clear(request, ["threshold", "layer"])
    (got,) = engine("generate", [request])
    assert_answer(got, request, reference, ["threshold", "layer"])


@pytest.mark.parametrize("features", [1, 7, "all"])
def test_the_strongest_features_or_all(engine: Called, reference: Reference, features: Any) -> None:
    request = every_kind(reference, "threshold")[2]
    request = reference.clear({**request, "sae": {**request["sae"], "sae_features": features}}, ["threshold"])
    (got,) = engine("generate", [of_sae(request, "threshold")])
    assert_answer(got, request, reference, ["threshold"])


def test_each_of_several_sampled_answers_is_edited_and_read(engine: Called, reference: Reference) -> None:
    first, *others = [reference.clear(one, ["threshold"]) for one in every_kind(reference, "threshold")[6:8]]
    sampled = {"n": 3, "temperature": 1.0, "seed": 4, "max_tokens": 12}
    asked = {**first["sae"], "sae_edits": [{"feature": 12, "add": 40.0}], "sae_gate": "answer"}
    request = {**first, **sampled, "sae": asked}
    got, *rest = engine("generate", [of_sae(request, "threshold"), *(of_sae(one, "threshold") for one in others)])
    assert len({tuple(tokens) for tokens in got["tokens"]}) == len(got["features"]) == 3
    for number, tokens in enumerate(got["tokens"]):
        assert_read(got, number, reference.read(request, tokens, ["threshold"]), request, reference)
    for one, other in zip(rest, others, strict=True):
        assert_answer(one, other, reference, ["threshold"])


def test_requests_that_are_aborted_change_no_other(engine: Called, reference: Reference) -> None:
    requests = [reference.clear(one, ["threshold"]) for one in every_kind(reference, "threshold")]
    ended = [1, 0, 8, 5]
    answers = engine("generate_while_others_end", [of_sae(request, "threshold") for request in requests], ended)
    left = [request for number, request in enumerate(requests) if number not in ended]
    for got, request in zip(answers, left, strict=True):
        assert_answer(got, request, reference, ["threshold"])
    assert engine("rpc", "sae_features", [f"one-{number}" for number in range(12)])  # nothing of them is in the way


def test_one_object_of_parameters_serves_many_prompts_many_times(engine: Called, reference: Reference) -> None:
    requests = [{**every_kind(reference, "threshold")[i], "max_tokens": 8} for i in (1, 4)]
    asked = {"sae_edits": [{"feature": 30, "set": 60.0, "sae": "threshold"}], "sae_gate": "answer"}
    runs = engine("generate_alike", [request["ids"] for request in requests], asked, times=2)
    want = [reference.answer({**request, "sae": asked}, ["threshold"]).tokens for request in requests]
    assert runs == [want, want]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {  # what else is refused, test_asking says without an engine
    "feature out of range": ({"sae_edits": [{"feature": D_SAE, "ablate": True, "sae": "topk"}]}, "0 to 1151"),
    "bad JSON": ({"sae_edits": '[{"feature": 7'}, "JSON"),
    "too large": ({"sae_edits": [{"feature": 7, "set": 3.4e38, "sae": "topk"}]}, "smaller"),
    "a plan of its own": ({"sae": {"features": 3}}, "argument"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_sentence(engine: Called, name: str) -> None:
    asked, expected = REFUSED[name]
    with pytest.raises(Raised, match=expected) as raised:
        engine("generate", [{"ids": [1, 2, 3], "sae": asked, "max_tokens": 2}])
    assert raised.value.is_value_error
    assert "\n" not in raised.value.sentence and len(raised.value.sentence) < 500
    assert engine("generate", [{"ids": [1, 2, 3], "max_tokens": 2}])[0]["tokens"]


def test_the_status_tells_what_was_read(engine: Called, reference: Reference) -> None:
    engine("generate", [{"ids": chat(reference, "Hello."), "sae": {"sae_features": 3}, "max_tokens": 2}])
    (status,) = engine("rpc", "sae_status")
    assert list(status) == list(KINDS)
    for kind, figures in status.items():
        assert figures["hook"].endswith("layers.10") and figures["d_sae"] == D_SAE and figures["tokens"] > 0
        assert figures["l0"] > 0 and (kind != "topk" or figures["l0"] <= 24)
