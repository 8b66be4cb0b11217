"""The field `sae` in vLLM's own API server, asked by the official client: edits and features against transformers."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import malformed
import numpy as np
import openai
import pytest
from vllm_processes import MODEL, api_server, needs_vllm, settings_of
from vllm_reference import Reference, assert_features_equal
from vllm_requests import chat, every_kind, of_sae

from sae_runtime.bundle.labels import read_labels

pytestmark = needs_vllm
KEY, NAMES, MOST = "right", ("threshold", "topk"), 5
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
CHAT: dict[str, Any] = {
    "model": "text",
    "messages": [{"role": "user", "content": "What is the sun?"}],
    "temperature": 0,
}


@pytest.fixture(scope="module")
def address(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = settings_of([{"bundle": reference.bundles[name], "name": name} for name in NAMES])
    words = ["--enforce-eager", "--max-model-len", "256", "--block-size", "32", "--served-model-name", "text"]
    words += ["--api-key", KEY, "--middleware", "sae_runtime.serve.vllm.field.SaeField"]
    log = tmp_path_factory.mktemp("field") / "log"
    with api_server(MODEL, log, *words, "--additional-config", json.dumps(settings)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def field_of(request: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The `sae` object of a request of the harness."""
    return {key.removeprefix("sae_"): value for key, value in request["sae"].items()} | more


def wrong(count: int) -> Iterator[tuple[str, bytes]]:
    """Paths and bodies of requests for two tokens; in most of them something is wrong."""
    rng = np.random.default_rng(7)
    pick, values = malformed._pick, malformed._VALUES
    while count:
        head, _, text = malformed.openai(rng).partition(b"\r\n\r\n")
        body, path = json.loads(text), head.split()[1].decode()
        if b"completions" not in head or b"ud800" in text:  # vLLM itself answers half a character with 500
            continue
        features = {"features": pick(rng, values), "edits": [pick(rng, malformed._EDITS)]}
        keys = ("sae_edits", "sae_gate", "sae_features", "sae_ticket", "sae")
        more: tuple[Any, ...] = (
            {},
            {"sae": pick(rng, (*values, features))},
            {"vllm_xargs": {pick(rng, keys): pick(rng, values)}},
        )
        yield path, json.dumps({**body, **pick(rng, more), "max_tokens": 2}).encode()
        count -= 1


def assert_tokens(
    tokens: Sequence[Mapping[str, Any]], ids: Sequence[int], truth: Mapping[str, Any], reference: Any
) -> None:
    """Assert that token objects are of these tokens and have the strongest of their true features, the first first."""
    assert [one["id"] for one in tokens] == list(ids)
    assert [one["token"] for one in tokens] == reference.tokenizer.convert_ids_to_tokens(list(ids))
    for name in NAMES:
        rows = [[one for one in token["features"] if one["sae"] == name] for token in tokens]
        labels = read_labels(reference.bundles[name])
        assert all(one["label"] == labels.get(one["feature"]) for row in rows for one in row)
        assert all(np.diff([one["value"] for one in row]).max(initial=0) <= 0 for row in rows)
        ordered = [one for row in rows for one in sorted(row, key=lambda one: one["feature"])]
        plain = {
            "indptr": np.cumsum([0, *map(len, rows)]),
            "indices": np.array([one["feature"] for one in ordered]),
            "values": np.array([one["value"] for one in ordered], np.float32),
        }
        assert_features_equal(plain, truth[name], reference.sae(name), strongest=MOST)


def test_twelve_callers_get_their_own_edits_and_features(address: str, reference: Reference) -> None:
    requests = [of_sae(request, "threshold") for request in every_kind(reference, "threshold")]

    async def ask(client: Any, number: int) -> tuple[list[int], list[Any]]:
        request = requests[number]
        sae = field_of(request, features=MOST)
        xargs = {**request["sae"], "sae_features": MOST}
        if "sae_edits" in xargs:
            xargs["sae_edits"] = json.dumps(xargs["sae_edits"])
        body = {"vllm_xargs": xargs} if number % 3 == 0 else {"sae": sae}
        settings: dict[str, Any] = {"model": "text", "prompt": request["ids"], "temperature": 0}
        settings |= {"max_tokens": request["max_tokens"], "extra_body": {**body, "return_token_ids": True}}
        if number % 2:
            made = await client.completions.create(**settings)
            assert made.choices[0].model_extra["prompt_token_ids"] == request["ids"]
            return made.choices[0].model_extra["token_ids"], made.choices[0].model_extra["sae"]["tokens"]
        new: list[int] = []
        tokens: list[Any] = []
        async for chunk in await client.completions.create(**settings, stream=True):
            new += chunk.choices[0].model_extra.get("token_ids") or []
            tokens += (chunk.choices[0].model_extra.get("sae") or {"tokens": []})["tokens"]
        return new, tokens

    async def ask_all() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=240) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    for (new, tokens), request in zip(asyncio.run(ask_all()), requests, strict=True):
        want = reference.answer(request, NAMES)
        assert new == want.tokens
        assert_tokens(tokens, [*request["ids"], *new][:-1], want.features, reference)


def test_a_chat_whole_and_as_a_stream(client: Any, reference: Reference) -> None:
    edit = {"feature": "feature of row 30", "set": "x3", "sae": "threshold"}
    body = {"sae": {"edits": [edit], "gate": "answer", "features": MOST}}
    settings: dict[str, Any] = {**CHAT, "max_completion_tokens": 8, "extra_body": body}
    whole = client.chat.completions.create(**settings)
    made = client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    *chunks, last, usage = list(made)
    request: dict[str, Any] = {"ids": chat(reference, "What is the sun?"), "max_tokens": 8}
    want = reference.answer({**request, "sae": {"sae_edits": [edit], "sae_gate": "answer"}}, NAMES)
    tokens = whole.choices[0].model_extra["sae"]["tokens"]
    assert_tokens(tokens, [*request["ids"], *want.tokens][:-1], want.features, reference)
    text = reference.tokenizer.decode(want.tokens)
    assert whole.choices[0].message.content == text == "".join(one.choices[0].delta.content or "" for one in chunks)
    assert last.choices[0].model_extra["sae"]["tokens"] == tokens
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens == 8
    assert "token_ids" not in (whole.model_extra or {}) and whole.choices[0].model_extra["token_ids"] is None
    with client.chat.completions.stream(**settings) as stream:
        for _ in stream:
            pass
        assert stream.current_completion_snapshot.choices[0].message.content == text


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_answers(client: Any, reference: Reference, stream: bool) -> None:
    prompts = ["The sun is", "Once upon a time", "def add(a, b):"]
    settings: dict[str, Any] = {"model": "text", "prompt": prompts, "n": 2, "temperature": 0.8, "seed": 5}
    body = {"sae": {"features": MOST}, "return_token_ids": True}
    made = client.completions.create(**settings, max_tokens=6, stream=stream, extra_body=body)
    new: dict[int, list[int]] = {}
    tokens: dict[int, Any] = {}
    for choice in [one.choices[0] for one in made] if stream else made.choices:
        new.setdefault(choice.index, []).extend(choice.model_extra.get("token_ids") or [])
        if "sae" in choice.model_extra:
            assert choice.index not in tokens
            tokens[choice.index] = choice.model_extra["sae"]["tokens"]
    assert sorted(tokens) == [0, 1, 2, 3, 4, 5] and len({tuple(one) for one in new.values()}) > 3
    for index, prompt in enumerate(prompts):
        ids = reference.tokenizer(prompt)["input_ids"]
        for number in (2 * index, 2 * index + 1):
            want = reference.read({"ids": ids}, new[number], NAMES)
            assert_tokens(tokens[number], [*ids, *new[number]][:-1], want.features, reference)


def test_stop_strings_one_token_and_other_fields_of_the_protocol(client: Any, reference: Reference) -> None:
    ids = reference.tokenizer("Once upon a time")["input_ids"]
    want = reference.answer({"ids": ids, "max_tokens": 12}, NAMES)
    settings: dict[str, Any] = {"model": "text", "prompt": "Once upon a time", "temperature": 0}
    body = {"sae": {"features": MOST}, "return_token_ids": True}
    stop = reference.tokenizer.decode(want.tokens[5:7])
    for more in (
        {"stop": [stop], "max_tokens": 12},
        {"max_tokens": 1, "logprobs": 2},
        {"max_tokens": 12, "suffix": None},
    ):
        choice = client.completions.create(**settings, **more, extra_body=body).choices[0]
        new = choice.model_extra["token_ids"]
        assert new == want.tokens[: len(new)] and (choice.finish_reason == "stop") == ("stop" in more)
        truth = {name: one[: len(ids) + len(new) - 1] for name, one in want.features.items()}
        assert_tokens(choice.model_extra["sae"]["tokens"], [*ids, *new][:-1], truth, reference)


def test_what_cannot_be_done_is_a_400_and_the_next_request_is_answered(client: Any) -> None:
    good = {"edits": [{"feature": 7, "set": 8.0, "sae": "topk"}], "features": 1}
    for body, said in (
        ({"sae": {"edits": [{"feature": 99999, "set": 8.0, "sae": "topk"}]}}, "99999"),
        ({"sae": {"edits": [{"feature": 7, "set": 1e39, "sae": "topk"}]}}, "finite"),
        ({"sae": {"features": 101}}, "features is"),
        ({"sae": {"edit": []}}, "no key"),
        ({"sae": good, "use_beam_search": True}, "use_beam_search"),
        ({"vllm_xargs": {"sae_features": 3, "sae_ticket": "a"}}, "sae_ticket"),
        ({"sae": good, "vllm_xargs": {"a": {}}}, "vllm_xargs"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=said) as told:
                client.chat.completions.create(**CHAT, max_tokens=2, stream=stream, extra_body=body)
            body_of: Any = told.value.body
            assert body_of["code"] == 400 and "Traceback" not in str(told.value)
        made = client.chat.completions.create(**CHAT, max_tokens=2, extra_body={"sae": good})
        assert len(made.choices[0].model_extra["sae"]["tokens"][0]["features"]) == 2
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(**{**CHAT, "model": "other"}, extra_body={"sae": good})
    with pytest.raises(openai.BadRequestError, match="/v1/responses"):
        client.responses.create(model="text", input="Hello", extra_body={"sae": good})
    with pytest.raises(openai.BadRequestError, match="carry no features"):
        client.responses.create(model="text", input="Hello", extra_body={"vllm_xargs": {"sae_features": 1}})


def test_edits_reach_the_other_routes_by_extra_arguments(client: Any, reference: Reference) -> None:
    edit = {"feature": "feature of row 30", "set": "x3", "sae": "threshold"}
    ids = chat(reference, "What is the sun?")
    want, plain = (
        reference.answer({"ids": ids, "sae": sae, "max_tokens": 6}, NAMES).tokens
        for sae in ({"sae_edits": [edit], "sae_gate": "answer"}, {})
    )
    body = {"vllm_xargs": {"sae_edits": json.dumps([edit]), "sae_gate": "answer"}}
    made = client.responses.create(
        model="text", input="What is the sun?", temperature=0, max_output_tokens=6, extra_body=body
    )
    assert made.output_text == reference.tokenizer.decode(want) != reference.tokenizer.decode(plain)


def test_the_key_is_asked_first(address: str, client: Any) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0, timeout=60) as stranger:
        for body in ({"sae": {"features": 101}}, {"sae": {"features": 1}}):
            with pytest.raises(openai.AuthenticationError):
                stranger.chat.completions.create(**CHAT, extra_body=body)
        with pytest.raises(openai.AuthenticationError):
            stranger.get("/sae", cast_to=object)
    told: Any = client.get("/sae", cast_to=object)
    assert [(one["name"], one["hook"], one["d_sae"]) for one in told["data"]] == [
        (name, "layers.10", 1152) for name in NAMES
    ]
    assert all(one["tokens"] > 0 and one["l0"] > 0 and "l0" in one["bundle"] for one in told["data"])


def test_clients_that_leave_and_malformed_bodies_leave_the_server_sound(
    address: str, client: Any, reference: Reference
) -> None:
    for number in range(6):
        with client.chat.completions.create(
            **CHAT, max_tokens=100, stream=True, extra_body={"sae": {"features": MOST}}
        ) as stream:
            for _, _ in zip(range(number), stream, strict=False):
                pass
    codes = [httpx.post(f"{address}{path}", content=body, headers=HEADERS).status_code for path, body in wrong(120)]
    assert set(codes) == {200, 400} and httpx.get(f"{address}/health").status_code == 200
    ids = reference.tokenizer("Once upon a time")["input_ids"]
    made = client.completions.create(
        model="text", prompt="Once upon a time", temperature=0, max_tokens=3, extra_body={"sae": {"features": MOST}}
    )
    want = reference.answer({"ids": ids, "max_tokens": 3}, NAMES)
    assert_tokens(made.choices[0].model_extra["sae"]["tokens"], [*ids, *want.tokens][:-1], want.features, reference)
