"""The field `sae` before an application that answers as vLLM's API server does, asked by the official client."""

import asyncio
import gzip
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from vllm_stand_in import KEY, Engine, application, features_at, settings, written

from sae_runtime.serve import json_text
from sae_runtime.serve.vllm.field import SaeField

D_SAE = 150
EDITS = [{"feature": 3, "set": 8.0, "sae": "one"}, {"feature": "include", "ablate": True, "sae": "two"}]
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "w5 w6 w7"}]}


@pytest.fixture(scope="module")
def bundle(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field") / "labelled"
    shutil.copytree(bundle_of("mutual", D_SAE), folder)
    (folder / "labels.jsonl").write_text('{"feature": 12, "label": "include"}\n')
    return folder


@pytest.fixture
def engine(bundle: Path) -> Engine:
    return Engine(settings(bundle, limits={"edits": 8}), D_SAE)


def run(engine: Engine, ask: Callable[[openai.AsyncOpenAI], Awaitable[Any]], *inner: Any, key: str = KEY) -> Any:
    """What a function gives for a client of the application."""

    async def asked() -> Any:
        transport = httpx.ASGITransport(application(engine, [SaeField, *inner]))
        http: Any = httpx.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(base_url="http://a/v1", api_key=key, max_retries=0, http_client=http) as client:
            try:
                return await ask(client)
            finally:
                await asyncio.sleep(0.01)  # what is dropped is dropped behind the answer

    return asyncio.run(asked())


def post(engine: Engine, path: str, body: Any, *inner: Any, key: str = KEY, **headers: str) -> httpx.Response:
    """The answer to a body of any form."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "application/json", **{name.replace("_", "-"): one for name, one in headers.items()}}

    async def ask(client: Any) -> Any:
        return await client._client.post(
            f"http://a{path}", content=content, headers={"authorization": f"Bearer {key}", **given}
        )

    answer: httpx.Response = run(engine, ask, *inner)
    return answer


def expected(prompt: list[int], new: list[int], most: int) -> list[dict[str, Any]]:
    """The token objects of an answer by the rule of the engine: strongest first, one SAE behind the other."""
    found = []
    for place, token in enumerate([*prompt, *new][:-1]):
        strongest = sorted(features_at(token, place, D_SAE).items(), key=lambda one: -one[1])[:most]
        features = [
            {"sae": sae, "feature": number, "value": value, "label": "include" if number == 12 else None}
            for sae in ("one", "two")
            for number, value in strongest
        ]
        found.append({"token": f"w{token}", "id": token, "features": features})
    return found


def test_a_chat_gets_edits_and_features(engine: Engine) -> None:
    sae = {"edits": EDITS, "gate": "answer", "features": 2}
    made = run(engine, lambda client: client.chat.completions.create(**CHAT, extra_body={"sae": sae}))
    assert made.choices[0].message.content == "w8 w9 w10 w11"
    assert made.choices[0].model_extra["sae"]["tokens"] == expected([5, 6, 7], [8, 9, 10, 11], 2)
    (asked,) = engine.asked
    assert json.loads(asked.pop("sae_edits")) == EDITS and len(asked.pop("sae_ticket")) == 32
    assert asked == {"sae_gate": "answer", "sae_features": 2}
    assert made.model_extra["prompt_token_ids"] is None and made.choices[0].model_extra["token_ids"] is None
    assert engine.kept == {} and engine.dropped == []


def test_each_choice_of_several_prompts_has_its_own_features(engine: Engine) -> None:
    prompts = [f"w{number} w{number + 20}" for number in range(12)]  # beyond ten, names do not sort as numbers
    made = run(
        engine,
        lambda client: client.completions.create(
            model="m", prompt=prompts, n=2, max_tokens=3, extra_body={"sae": {"features": 3}, "return_token_ids": True}
        ),
    )
    for number, choice in enumerate(made.choices):
        prompt = [number // 2, number // 2 + 20]
        assert choice.model_extra["sae"]["tokens"] == expected(prompt, written(prompt, number % 2, 3), 3)
        assert choice.model_extra["prompt_token_ids"] == prompt
        assert choice.model_extra["token_ids"] == written(prompt, number % 2, 3)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_stream_ends_with_the_features_of_each_choice(engine: Engine, route: str, usage: bool) -> None:
    settings: dict[str, Any] = {"n": 3, "max_tokens": 5, "stream": True, "extra_body": {"sae": {"features": 1}}}
    if usage:
        settings["stream_options"] = {"include_usage": True}

    async def ask(client: openai.AsyncOpenAI) -> list[Any]:
        if route == "chat":
            return [chunk async for chunk in await client.chat.completions.create(**CHAT, **settings)]
        return [chunk async for chunk in await client.completions.create(model="m", prompt="w5 w6 w7", **settings)]

    chunks = run(engine, ask)
    if usage:
        assert chunks[-1].choices == [] and chunks.pop().usage.completion_tokens == 15
    shown = {chunk.choices[0].index: chunk.choices[0].model_extra["sae"]["tokens"] for chunk in chunks[-3:]}
    assert shown == {child: expected([5, 6, 7], written([5, 6, 7], child, 5), 1) for child in range(3)}
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[-3:])
    assert not any("sae" in chunk.choices[0].model_extra for chunk in chunks[:-3])
    assert not any(chunk.choices[0].model_extra.get("token_ids") for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-6:-3]] == ["length"] * 3
    assert engine.kept == {} and engine.dropped == []


def test_the_helper_of_the_client_reads_a_stream(engine: Engine) -> None:
    async def ask(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(**CHAT, extra_body={"sae": {"features": 1}}) as stream:
            async for _ in stream:
                pass
            return stream.current_completion_snapshot

    assert run(engine, ask).choices[0].message.content == "w8 w9 w10 w11 "


def test_extra_arguments_give_features_too(engine: Engine) -> None:
    xargs = {"sae_edits": json.dumps(EDITS), "sae_gate": [0, 2], "sae_features": 1, "seed_of_another": 7}
    made = run(engine, lambda client: client.chat.completions.create(**CHAT, extra_body={"vllm_xargs": xargs}))
    assert made.choices[0].model_extra["sae"]["tokens"] == expected([5, 6, 7], [8, 9, 10, 11], 1)
    assert json.loads(engine.asked[0]["sae_gate"]) == [0, 2] and engine.asked[0]["seed_of_another"] == 7
    body = {**CHAT, "vllm_xargs": {"sae_edits": json.dumps(EDITS)}}
    assert "sae" not in post(engine, "/v1/chat/completions", body).json()["choices"][0]
    assert "sae_ticket" not in engine.asked[1]


def test_edits_alone_leave_the_answer_as_it_is(engine: Engine) -> None:
    with_sae = post(engine, "/v1/chat/completions", {**CHAT, "sae": {"edits": EDITS}, "return_token_ids": False})
    assert with_sae.content == post(engine, "/v1/chat/completions", CHAT).content
    assert [sorted(one) for one in engine.asked] == [["sae_edits"], []]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae": 7}, "sae is an object"),
        ({"sae": []}, "sae is an object"),
        ({"sae": {"edit": []}}, "sae has no key 'edit'"),
        ({"sae": {"ticket": "a"}}, "sae has no key 'ticket'"),
        ({"sae": {"features": 101}}, "features is a whole number from 0 to 100"),
        ({"sae": {"features": "all"}}, "features is a whole number"),
        ({"sae": {"features": True}}, "features is a whole number"),
        ({"sae": {"edits": {"edits": []}}}, "edits is a list"),
        ({"sae": {"edits": json.dumps(EDITS)}}, "edits is a list"),
        ({"sae": {"edits": EDITS * 5}}, "10 edits were given"),
        ({"sae": {"edits": [{"feature": 3, "set": 1.0}]}}, "names its SAE"),
        ({"sae": {"edits": [{"feature": D_SAE, "set": 1.0, "sae": "one"}]}}, str(D_SAE)),
        ({"sae": {"edits": [{"feature": "nothing", "set": 1.0, "sae": "one"}]}}, "nothing"),
        ({"sae": {"edits": [{"feature": 3, "set": 1.0, "sae": "three"}]}}, "there is no SAE 'three'"),
        ({"sae": {"edits": EDITS, "gate": {"spans": [[0, 3]]}}}, "spans"),
        ({"sae": {"edits": EDITS, "gate": "answers"}}, "a gate is"),
        ({"sae": {"features": 1}, "vllm_xargs": {"sae_features": 2}}, "give one of them"),
        ({"sae": {"features": 1}, "use_beam_search": True}, "use_beam_search"),
        ({"sae": {"features": 1}, "include_reasoning": False}, "include_reasoning"),
        ({"vllm_xargs": {"sae_features": 1}, "use_beam_search": True}, "use_beam_search"),
        ({"vllm_xargs": {"sae_features": 1, "sae_ticket": "of another"}}, "sae_ticket"),
        ({"vllm_xargs": {"sae_ticket": "of another"}}, "sae_ticket"),
        ({"vllm_xargs": {"sae_features": "all"}}, "sae_features is a whole number"),
        ({"vllm_xargs": {"sae_features": 5.0}}, "sae_features is a whole number"),
        ({"vllm_xargs": {"sae_edits": "["}}, "JSON"),
        ({"vllm_xargs": {"sae_edit": "[]"}}, "sae_edit"),
        ({"vllm_xargs": {"sae": "{}"}}, "sae"),
        ({"sae": {"features": 1}, "vllm_xargs": "a"}, "another form"),
        ({"model": "x", "sae": {"features": 1}}, "The model `x` does not exist."),
    ],
)
def test_a_request_that_cannot_be_done_is_refused_with_a_sentence(
    engine: Engine, change: dict[str, Any], message: str
) -> None:
    for stream in (False, True):
        answer = post(engine, "/v1/chat/completions", {**CHAT, **change, "stream": stream})
        error = answer.json()["error"]
        assert answer.status_code == error["code"] == 400 and message in error["message"], answer.text
        assert answer.headers["content-type"] == "application/json"
    sound = post(engine, "/v1/chat/completions", {**CHAT, "sae": {"edits": EDITS, "features": 1}})
    assert sound.status_code == 200 and engine.kept == {}


@pytest.mark.parametrize("more", [{"echo": True}, {"prompt_embeds": "AAAA"}])
def test_features_are_refused_where_the_tokens_are_not_told(engine: Engine, more: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "w1", **more}
    answer = post(engine, "/v1/completions", {**body, "sae": {"features": 1}})
    assert answer.status_code == 400 and next(iter(more)) in answer.json()["error"]["message"]
    assert post(engine, "/v1/completions", {**body, "sae": {"edits": EDITS}}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "taken"),
    [
        ("/v1/responses", {"sae": {"features": 1}}, False),
        ("/v1/responses", {"vllm_xargs": {"sae_features": 1}}, False),
        ("/v1/responses", {"vllm_xargs": {"sae_ticket": "a"}}, False),
        ("/v1/responses", {"sampling_params": {"extra_args": {"sae_features": 1}}}, False),
        ("/v1/responses", {"vllm_xargs": {"sae_edits": "[]", "sae_gate": "prompt"}}, True),
        ("/v1/responses", {"input": 'the "sae" of a text', "sae": None}, True),
        ("/v1/embeddings", {"sae": {"edits": EDITS}}, False),
        ("/v1/embeddings", {"vllm_xargs": {"sae_edits": "[]"}}, False),
        ("/tokenize", {"sae": 1}, False),
        ("/tokenize", {"prompt": "sae"}, True),
    ],
)
def test_no_other_route_ignores_the_field(engine: Engine, path: str, body: Any, taken: bool) -> None:
    answer = post(engine, path, body)
    assert answer.status_code == (200 if taken else 400)
    if taken:
        assert answer.json()["got"] == json.dumps(body)
    else:
        assert path in answer.json()["error"]["message"]


def test_a_key_is_found_however_json_writes_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LARGEST", 1 << 20)
    plain = json.dumps({**CHAT, "sae": {"features": 101}})
    for body in (
        plain.replace('"sae"', '"\\u0073\\u0061e"').encode(),
        plain.encode("utf-16"),
        plain.encode("utf-32-be"),
    ):
        answer = post(engine, "/v1/chat/completions", body)
        assert answer.status_code == 400 and "features is" in answer.json()["error"]["message"]
    for body in (
        plain[:-1].encode(),
        b'{"sae": NaN}',
        b'{"sae": {}, "sae": {}}',
        b'{"sae": ' + b"[" * 100_000,
        b'"sae"',
    ):
        assert post(engine, "/v1/chat/completions", body).status_code == 400
    large = json.dumps({**CHAT, "user": "x" * (1 << 20)})
    assert post(engine, "/v1/chat/completions", large.encode()).status_code == 200
    answer = post(engine, "/v1/chat/completions", large.replace('"user"', '"sae": {}, "user"').encode())
    assert answer.status_code == 400 and "bytes" in answer.json()["error"]["message"]


def test_a_body_without_the_field_passes_byte_by_byte(engine: Engine) -> None:
    for body in (b'{"b": 1.0,  "a": "\\u00e9", "b": NaN}', b"\xff\x00", b"", b"[1]", b'{"text": "it is \\"sae\\""}'):
        assert post(engine, "/v1/responses", body).json()["got"].encode("latin-1") == body
    sound = json.dumps({"sae": {}}).encode()
    assert post(engine, "/tokenize", gzip.compress(sound), content_encoding="gzip").status_code == 200
    assert post(engine, "/tokenize", sound, content_type="multipart/form-data; boundary=a").status_code == 200


def test_a_wrong_key_is_refused_before_the_field_is_read(engine: Engine) -> None:
    for path, body in (("/v1/chat/completions", {**CHAT, "sae": {"features": 101}}), ("/v1/responses", {"sae": 1})):
        assert post(engine, path, body, key="wrong").status_code == 401

    async def ask(client: openai.AsyncOpenAI) -> Any:
        with pytest.raises(openai.AuthenticationError):
            await client.get("/sae", cast_to=object)

    run(engine, ask, key="wrong")
    assert engine.asked == []


def test_what_is_loaded_is_shown(engine: Engine) -> None:
    async def ask(client: openai.AsyncOpenAI) -> Any:
        return await client.get("/sae", cast_to=object)

    rest = {"hook": "layers.0", "d_sae": D_SAE, "l0": None}
    assert run(engine, ask) == {"object": "list", "data": [{"name": "one", **rest}, {"name": "two", **rest}]}
    engine.dead = True
    with pytest.raises(openai.InternalServerError, match="did not answer") as told:
        run(engine, ask)
    assert told.value.status_code == 503
    with pytest.raises(openai.NotFoundError, match="serves no SAE"):
        run(Engine(None, 0), ask)


def test_a_server_without_saes_says_so(engine: Engine) -> None:
    for change in ({"sae": {"features": 1}}, {"vllm_xargs": {"sae_edits": "[]"}}):
        answer = post(Engine(None, 0), "/v1/chat/completions", {**CHAT, **change})
        assert answer.status_code == 400 and "serves no SAE" in answer.json()["error"]["message"]
    assert post(Engine(None, 0), "/v1/chat/completions", CHAT).status_code == 200


def test_features_that_the_engine_lost_are_an_error_and_no_silence(engine: Engine) -> None:
    class Forgetful(Engine):
        async def collective_rpc(self, method: str, args: Any = ()) -> list[Any]:
            return [{args[0][0]: {}}] if method == "sae_features" else await super().collective_rpc(method, args)

    engine.__class__ = Forgetful
    for dead in (False, True):
        engine.dead = dead
        answer = post(engine, "/v1/chat/completions", {**CHAT, "sae": {"features": 1}})
        assert answer.status_code == answer.json()["error"]["code"] == 503

        async def ask(client: openai.AsyncOpenAI) -> list[Any]:
            found = []
            with pytest.raises(openai.APIError, match="features of this answer"):
                async for chunk in await client.chat.completions.create(
                    **CHAT, stream=True, extra_body={"sae": {"features": 1}}
                ):
                    found.append(chunk)
            return found

        assert "".join(chunk.choices[0].delta.content or "" for chunk in run(engine, ask)) == "w8 w9 w10 w11 "


def test_an_error_of_vllm_in_a_stream_is_passed_on_and_the_features_are_dropped(engine: Engine) -> None:
    body = {**CHAT, "sae": {"features": 1}, "user": "fails", "stream": True}
    with_sae = post(engine, "/v1/chat/completions", body).text
    without = post(engine, "/v1/chat/completions", {key: one for key, one in body.items() if key != "sae"}).text
    assert [json.loads(line[6:]) for line in with_sae.splitlines() if line.startswith("data: {")] == [
        {"prompt_token_ids": None, **json.loads(line[6:])} if "role" in line else json.loads(line[6:])
        for line in without.splitlines()
        if line.startswith("data: {")
    ]
    assert with_sae.endswith("data: [DONE]\n\n") and with_sae.count("[DONE]") == 1
    assert engine.dropped == [engine.asked[0]["sae_ticket"]] and engine.kept == {}


def test_features_of_a_client_that_leaves_are_dropped(engine: Engine) -> None:
    body = json.dumps({**CHAT, "sae": {"features": 1}, "stream": True, "max_tokens": 40}).encode()
    scope = {
        **{
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "http_version": "1.1",
        },
        **{"headers": [(b"authorization", f"Bearer {KEY}".encode())], "asgi": {"spec_version": "2.3"}},
    }

    async def ask() -> int:
        sent: list[Any] = []
        left, parts = asyncio.Event(), [body[:20], body[20:]]

        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 9:
                left.set()
            await asyncio.sleep(0)

        await application(engine, [SaeField])(scope, receive, send)
        await asyncio.sleep(0.01)
        return len(sent)

    assert asyncio.run(ask()) < 30
    assert engine.dropped == [engine.asked[0]["sae_ticket"]] and engine.kept == {}


def test_other_middlewares_may_pack_the_answer_or_read_the_body(engine: Engine) -> None:
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware

    class Logs(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            await request.body()
            return await call_next(request)

    body = {**CHAT, "sae": {"features": 1}}
    for inner in (GZipMiddleware, Logs):
        answer = post(engine, "/v1/chat/completions", body, inner, accept_encoding="gzip")
        assert answer.json()["choices"][0]["sae"]["tokens"] == expected([5, 6, 7], [8, 9, 10, 11], 1)
    assert post(engine, "/v1/chat/completions", {**CHAT, "sae": 1}, Logs).status_code == 400
