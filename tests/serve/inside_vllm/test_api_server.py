"""vLLM's API server: 12 callers at once, each with edits of its own; what cannot be done is answered with 400."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from running import asked
from vllm_processes import MODEL, api_server, needs_vllm, settings_of
from vllm_reference import Reference
from vllm_requests import every_kind

from sae_runtime.serve.vllm.plugin import WORKER

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def address(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = settings_of([{"bundle": reference.bundles["threshold"]}], policy={"largest_multiple": 50})
    words = [
        "--worker-cls",
        WORKER,
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--block-size",
        "32",
        "--served-model-name",
        "smollm2",
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with api_server(MODEL, log, *words, "--additional-config", json.dumps(settings)) as address:
        yield address


def post(address: str, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    given = {"model": "smollm2", "temperature": 0, **body}
    code, answer, _ = asked(address, "POST", path, given, {"Content-Type": "application/json"})
    return code, json.loads(answer)


def xargs(sae: Mapping[str, Any]) -> dict[str, Any]:
    """What a request asks, in the values that vLLM's API takes: texts, numbers and lists of them."""
    return {name: json.dumps(value) if name == "sae_edits" else value for name, value in sae.items()}


def test_twelve_callers(address: str, reference: Reference) -> None:
    requests = [reference.clear(one, ["threshold"]) for one in every_kind(reference, "threshold")]

    def call(request: Mapping[str, Any]) -> list[int]:
        body = {"prompt": request["ids"], "max_tokens": request["max_tokens"], "return_token_ids": True}
        code, answer = post(address, "/v1/completions", {**body, "vllm_xargs": xargs(request["sae"])})
        assert code == 200, answer
        return list(answer["choices"][0]["token_ids"])

    for _ in range(2):  # the second time with prefixes in the cache
        with ThreadPoolExecutor(12) as pool:
            got = list(pool.map(call, requests))
        assert got == [reference.answer(request, ["threshold"]).tokens for request in requests]


BAD: tuple[dict[str, Any], ...] = (
    {"sae_edits": '[{"feature": 99999, "set": 8.0}]'},
    {"sae_edits": '[{"feature": "nothing", "set": 8.0}]'},
    {"sae_edits": '[{"feature": 7, "set": 8.0}, {"feature": 7, "ablate": true}]'},
    {"sae_edits": '[{"feature": 7, "set": NaN}]'},
    {"sae_edits": '[{"feature": 7, "set": 8.0'},
    {"sae_edits": '[{"feature": 7, "set": 3e38}]'},
    {"sae_edits": '[{"feature": 7, "set": 8.0, "sae": "mine"}]'},
    {"sae_edits": '[{"feature": 7, "set": "x51"}]'},  # over the policy's bound
    {"sae_edits": '[{"feature": 7, "set": 8.0}]', "sae_gate": '{"spans": [[0, 4]]}'},
    {"sae_edits": '[{"feature": 7, "set": 8.0}]', "sae_gate": [0.5, 2]},
    {"sae_edits": '[{"feature": 7, "set": 8.0}]', "sae_gate": "never"},
    {"sae_edits": ["a", "b"]},
    {"sae_edits": 7},
    {"sae_features": 1000},
    {"sae_features": "many"},
    {"sae_features": 3, "sae_ticket": 9},
    {"sae_edit": "[]"},
    {"sae": "[]"},
)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_cannot_be_done_is_a_400_and_the_server_lives(address: str, path: str) -> None:
    prompt: dict[str, Any] = {"prompt": "Hello"} if path == "/v1/completions" else {}
    prompt = prompt or {"messages": [{"role": "user", "content": "Hello"}]}
    for bad in BAD:
        code, answer = post(address, path, {**prompt, "max_tokens": 2, "vllm_xargs": bad})
        assert code == 400, (bad, answer)
        sentence = answer["error"]["message"]
        assert sentence and "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 500
        # vLLM begins a stream before it reads its request, and says so in the first event.
        body = {"model": "smollm2", **prompt, "max_tokens": 2, "vllm_xargs": bad, "stream": True}
        _, events, _ = asked(address, "POST", path, body, {"Content-Type": "application/json"})
        assert b'"code": 400' in events and json.dumps(sentence).encode() in events, events
        assert asked(address, "GET", "/health")[0] == 200, bad
    beams = {"use_beam_search": True, "n": 2, "max_tokens": 2}
    code, answer = post(address, path, {**prompt, **beams, "vllm_xargs": {"sae_edits": BAD[0]["sae_edits"]}})
    assert code == 400 and "beam" in answer["error"]["message"]
    assert post(address, path, {**prompt, **beams})[0] == 200
    code, answer = post(address, path, {**prompt, "max_tokens": 2, "vllm_xargs": {"sae_features": 3}})
    assert code == 200 and answer["choices"][0]


def test_a_chat_is_steered_by_a_label(address: str, reference: Reference) -> None:
    body = {"messages": [{"role": "user", "content": "What is the sun?"}], "max_tokens": 12}
    edits = '[{"feature": "feature of row 30", "set": "x3"}]'
    steered, plain = (
        post(address, "/v1/chat/completions", {**body, "vllm_xargs": given, "return_token_ids": True})[1]
        for given in ({"sae_edits": edits, "sae_gate": "answer"}, {})
    )
    ids = reference.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
    for answer, sae in ((steered, {"sae_edits": json.loads(edits), "sae_gate": "answer"}), (plain, {})):
        want = reference.answer({"ids": list(ids), "sae": sae, "max_tokens": 12}, ["threshold"])
        assert answer["choices"][0]["token_ids"] == want.tokens
    assert steered["choices"][0]["message"] != plain["choices"][0]["message"]
