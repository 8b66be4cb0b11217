"""The official openai client against the routes of OpenAI's protocol, over tiny models."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from deployed_model import D_SAE, deploy
from running import running

from sae_runtime import Edit, Model, load_model
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}w1"
STRONG = {"edits": [{"feature": 3, "set": 60.0}, {"feature": 7, "ablate": True}]}
EDITS = [Edit.set(3, 60.0), Edit.ablate(7)]
LIMITS = Limits(new_tokens=48, characters=2000, texts=12, waiting=40)


@dataclasses.dataclass(frozen=True)
class Served:
    """A server, and the models that it serves."""

    url: str
    plane: Plane
    writer: Model
    reader: Model

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30, **settings)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Iterator[Served]:
    folder, bundle = tmp_path_factory.mktemp("openai"), bundle_of("mutual", D_SAE, 4)
    writer, reader = (deploy(folder / kind, kind, {"bundle": bundle}) for kind in ("gpt2", "bert"))
    (writer / "chat_template.jinja").write_text(TEMPLATE)
    plane = Plane.open(
        [f"writer={writer}", f"writer@3={writer}", f"reader={reader}", f"bundle={bundle}"], limits=LIMITS
    )
    with running(plane) as url:
        yield Served(url, plane, load_model(writer, threads=1), load_model(reader, threads=1))


def alone(served: Served, prompt: str, **settings: Any) -> str:
    answer = served.writer.generate(prompt, **{"max_new_tokens": 12, **settings})
    list(answer)
    return answer.text


def test_a_chat_is_answered_as_the_model_answers_alone(served: Served) -> None:
    with served.client() as client:
        made = client.chat.completions.create(
            model="writer",
            messages=[
                {"role": "developer", "content": "w3 w4"},
                {"role": "user", "content": [{"type": "text", "text": "w5"}, {"type": "text", "text": "w6"}]},
            ],
            temperature=0,
            max_tokens=12,
            extra_body={"sae": {**STRONG, "gate": "answer", "features": 2}},
        )
    (choice,) = made.choices
    assert choice.message.content == alone(served, "w3 w4 w5 w6 w1", edits=EDITS, gate="answer")
    assert choice.finish_reason in ("stop", "length") and made.object == "chat.completion" and made.model == "writer"
    assert made.usage is not None and made.usage.prompt_tokens == 5
    assert made.usage.total_tokens == 5 + made.usage.completion_tokens
    tokens = choice.model_extra["sae"]["tokens"]  # type: ignore[index]
    assert len(tokens) == 5 + made.usage.completion_tokens - 1  # the last one is not read
    assert [token["token"] for token in tokens[:5]] == ["w3", "w4", "w5", "w6", "w1"]
    strongest = served.writer.features("w3 w4 w5 w6 w1").top(2).row(0)
    shown = {one["feature"]: one["value"] for one in tokens[0]["features"]}
    assert set(shown) == set(strongest[0].tolist()) and all(one["sae"] == "sae" for one in tokens[0]["features"])


def test_a_stream_is_the_answer_in_pieces(served: Served) -> None:
    asked: dict[str, Any] = {"model": "writer@3", "messages": [{"role": "user", "content": "w9 w2"}], "temperature": 0}
    asked |= {"max_completion_tokens": 10, "extra_body": {"sae": {**STRONG, "features": 1}}}
    with served.client() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            final = stream.current_completion_snapshot
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    tokens = [token for chunk in chunks[:-1] for token in chunk.choices[0].model_extra["sae"]["tokens"]]
    assert tokens == whole.choices[0].model_extra["sae"]["tokens"]


def test_completions_of_several_prompts_and_numbers(served: Served) -> None:
    with served.client() as client:
        made = client.completions.create(
            model="writer", prompt=["w1 w2", "w7"], n=2, seed=5, temperature=50.0, max_tokens=6, top_p=0.95
        )
        plain = client.completions.create(model="writer", prompt="w1 w2 w3", temperature=0, stop=["never"])
        pieces = client.completions.create(model="writer", prompt="w1 w2 w3", temperature=0, stream=True)
        text = "".join(piece.choices[0].text for piece in pieces)
    settings: dict[str, Any] = {"temperature": 50.0, "top_p": 0.95, "max_new_tokens": 6}
    expected = [alone(served, prompt, seed=seed, **settings) for prompt in ("w1 w2", "w7") for seed in (5, 6)]
    assert [choice.text for choice in made.choices] == expected and [one.index for one in made.choices] == [0, 1, 2, 3]
    assert made.usage is not None and made.usage.prompt_tokens == 3
    assert text == plain.choices[0].text == alone(served, "w1 w2 w3", max_new_tokens=16)


def test_a_stop_string_ends_an_answer(served: Served) -> None:
    whole = alone(served, "w1 w2 w3", max_new_tokens=10)
    stop = whole.split()[2]
    with served.client() as client:
        made = client.completions.create(model="writer", prompt="w1 w2 w3", temperature=0, max_tokens=10, stop=stop)
    assert made.choices[0].text == whole[: whole.index(stop)] and made.choices[0].finish_reason == "stop"


def test_requests_that_come_together_are_answered_as_if_alone(served: Served) -> None:
    asked: list[tuple[str, Any, int]] = []
    for number in range(12):
        prompt = " ".join(f"w{(5 * number + 3 * place) % 37}" for place in range(1 + 2 * (number % 5)))
        edits = [] if number % 3 == 0 else [{"feature": number, "add": 40.0}, {"feature": 30 + number, "scale": 2.0}]
        asked.append((prompt, edits[: 1 + number % 2], 4 + 3 * number))

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(prompt: str, edits: Any, most: int, late: float) -> str:
                await asyncio.sleep(late)
                settings: dict[str, Any] = {
                    "temperature": 0,
                    "max_tokens": most,
                    "extra_body": {"sae": {"edits": edits}},
                }
                if most % 2:
                    made = await client.completions.create(model="writer", prompt=prompt, **settings)
                    return str(made.choices[0].text)
                stream = await client.completions.create(model="writer", prompt=prompt, stream=True, **settings)
                return "".join([piece.choices[0].text async for piece in stream])

            return await asyncio.gather(*(one(*each, 0.002 * at) for at, each in enumerate(asked)))

    found = asyncio.run(ask())
    for text, (prompt, edits, most) in zip(found, asked, strict=True):
        kinds = [Edit.add(one["feature"], 40.0) if "add" in one else Edit.scale(one["feature"], 2.0) for one in edits]
        assert text == alone(served, prompt, edits=kinds, max_new_tokens=most)


@pytest.mark.filterwarnings("ignore::sae_runtime.deployed.notices.AssumedPoolingWarning")
def test_vectors(served: Served) -> None:
    texts = ["w1 w2 w3", "w30 w2", "w5"]
    expected = served.reader.embed(texts)
    with served.client() as client:
        made = client.embeddings.create(model="reader", input=texts)
        floats = client.embeddings.create(model="reader@1", input=texts, encoding_format="float")
        steered = client.embeddings.create(model="reader", input="w5", extra_body={"sae": {**STRONG, "gate": "text"}})
        short = client.embeddings.create(model="reader", input=texts, dimensions=7)
    for found in (made, floats):
        np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-5)
    np.testing.assert_allclose([one.embedding for one in short.data], expected[:, :7], atol=1e-5)
    np.testing.assert_allclose(steered.data[0].embedding, served.reader.embed("w5", EDITS, gate="text"), atol=1e-5)
    assert made.usage.prompt_tokens == 3 + 2 + 1 + 6


def test_features_of_texts(served: Served) -> None:
    asked: dict[str, Any] = {"model": "reader", "input": ["w1 w2", "w3"], "features": 3}
    found = httpx.post(f"{served.url}/v1/features", json=asked).json()["data"]
    for text, told in zip(asked["input"], found, strict=True):
        seen = served.reader.features(text)
        top = seen.top(3)
        assert [token["token"] for token in told["tokens"]] == seen.tokens
        assert [[token["start"], token["end"]] for token in told["tokens"]] == seen.offsets.tolist()
        for number, token in enumerate(told["tokens"]):
            indices, values = top.row(number)
            assert {one["feature"] for one in token["features"]} == set(indices.tolist())
            got = [one["value"] for one in token["features"]]
            np.testing.assert_allclose(got, np.sort(values)[::-1], rtol=1e-5)


def test_the_models_are_listed(served: Served) -> None:
    with served.client() as client:
        names = [one.id for one in client.models.list()]
        one = client.models.retrieve("writer@1")
    assert names == ["writer", "reader", "writer@1"] and one.model_extra["sae"]["saes"][0]["d_sae"] == D_SAE  # type: ignore[index]


CHAT: dict[str, Any] = {"model": "writer", "messages": [{"role": "user", "content": "w1"}]}
BAD: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    ("chat/completions", {**CHAT, "model": "other"}, 404, None, "there is no model 'other'"),
    ("chat/completions", {**CHAT, "model": "writer@2"}, 404, None, "has no version '2'"),
    ("chat/completions", {**CHAT, "model": "reader"}, 404, None, "has no operation 'generate'"),
    ("chat/completions", {**CHAT, "model": 3}, 400, "model", "model is the name"),
    ("chat/completions", {"model": "writer"}, 400, "messages", "messages is a list"),
    ("chat/completions", {**CHAT, "messages": ["w1"]}, 400, "messages", "messages\\[0\\] is an object"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": 3}]}, 400, "messages", "is text, got 3"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user"}]}, 400, None, 'has no "content"'),
    (
        "chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages",
        "image_url",
    ),
    ("chat/completions", {**CHAT, "logprobs": True}, 400, "logprobs", "logprobs is not known"),
    ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "tools", "tools is not known"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format", "is not known"),
    ("chat/completions", {**CHAT, "frequency_penalty": 0.5}, 400, "frequency_penalty", "got 0.5"),
    ("chat/completions", {**CHAT, "logit_bias": {"3": 5}}, 400, "logit_bias", "is not known"),
    ("chat/completions", {**CHAT, "temperature": -1}, 400, None, "temperature must be 0 to 1,000"),
    ("chat/completions", {**CHAT, "temperature": "1"}, 400, "temperature", "temperature is a number"),
    ("chat/completions", {**CHAT, "temperature": True}, 400, "temperature", "temperature is a number"),
    ("chat/completions", {**CHAT, "top_p": 0}, 400, None, "top_p must be above 0"),
    ("chat/completions", {**CHAT, "n": 0}, 400, "n", "from 1 on, got 0"),
    ("chat/completions", {**CHAT, "n": 13}, 413, None, "13 answers"),
    ("chat/completions", {**CHAT, "max_tokens": 49}, 413, None, "at most 48"),
    ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens", "from 1 on"),
    ("chat/completions", {**CHAT, "max_tokens": 1.0}, 400, "max_tokens", "a whole number"),
    ("chat/completions", {**CHAT, "stop": [""]}, 400, "stop", "not empty"),
    ("chat/completions", {**CHAT, "stream": 1}, 400, "stream", "true or false"),
    (
        "chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": 1}},
        400,
        "stream_options",
        "true",
    ),
    ("chat/completions", {**CHAT, "sae": []}, 400, "sae", "sae is an object"),
    ("chat/completions", {**CHAT, "sae": {"edits": [{"feature": 150, "set": 1}]}}, 400, None, "feature 150"),
    ("chat/completions", {**CHAT, "sae": {"edits": [{"feature": "hat", "set": 1}]}}, 400, None, "hat"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": "w1 " * 900}]}, 413, None, "characters"),
    (
        "chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": "w1 " * 90}]},
        400,
        None,
        "context holds 64",
    ),
    ("chat/completions", {**CHAT, "chat_template_kwargs": {"self": 1}}, 400, "chat_template_kwargs", "an object"),
    ("completions", {"model": "writer", "prompt": [3, 4]}, 400, "prompt", "numbers of tokens"),
    ("completions", {"model": "writer", "prompt": [[3, 4]]}, 400, "prompt", "numbers of tokens"),
    ("completions", {"model": "writer", "prompt": [""]}, 400, None, "the prompt has no tokens"),
    ("completions", {"model": "writer"}, 400, "prompt", "a text or a list of texts"),
    ("completions", {"model": "writer", "prompt": "w1", "echo": True}, 400, "echo", "echo is not known"),
    ("completions", {"model": "writer", "prompt": "w1", "logprobs": 3}, 400, "logprobs", "is not known"),
    ("completions", {"model": "bundle", "prompt": "w1"}, 404, None, "has no operation 'generate'"),
    ("embeddings", {"model": "writer", "input": "w1"}, 404, None, "has no operation 'embed'"),
    ("embeddings", {"model": "reader", "input": []}, 400, "input", "a text or a list"),
    ("embeddings", {"model": "reader", "input": [1, 2]}, 400, "input", "numbers of tokens"),
    ("embeddings", {"model": "reader", "input": ["w1"] * 13}, 413, None, "13 texts"),
    ("embeddings", {"model": "reader", "input": "w1", "dimensions": 25}, 400, "dimensions", "from 1 to 24"),
    ("embeddings", {"model": "reader", "input": "w1", "encoding_format": "hex"}, 400, "encoding_format", "base64"),
    ("features", {"model": "reader", "input": "w1", "features": -1}, 400, "sae", "features is a whole number"),
]


@pytest.mark.parametrize(("route", "body", "status", "param", "message"), BAD)
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    served: Served, route: str, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    import re

    answer = httpx.post(f"{served.url}/v1/{route}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert re.search(message, error["message"]) and "\n" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": NaN}', b"[" * 9999, b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(served: Served, body: bytes) -> None:
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_wrong_method_is_refused_in_a_sentence(served: Served) -> None:
    answer = httpx.get(f"{served.url}/v1/embeddings")
    assert answer.status_code == 405 and "knows no 'GET'; use POST" in answer.json()["error"]["message"]


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="other", prompt="w1")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(**CHAT, logprobs=True)
        assert bad.value.param == "logprobs"
        ignored: Any = {"user": "me", "store": True, "unknown": 3, "tools": [], "n": None, "logprobs": False}
        assert client.chat.completions.create(**CHAT, extra_body=ignored, temperature=0).choices


HUGE = {"edits": [{"feature": number, "set": 3e38} for number in range(60)]}


def test_an_answer_that_fails_on_its_way_ends_its_stream_with_an_error(served: Served) -> None:
    asked: dict[str, Any] = {**CHAT, "stream": True, "max_tokens": 8, "temperature": 0}
    with served.client() as client:
        with pytest.raises(openai.BadRequestError, match="overflow"):
            client.chat.completions.create(**asked, extra_body={"sae": HUGE})
        seen: list[Any] = []
        with pytest.raises(openai.APIError, match="overflow"):
            for chunk in client.chat.completions.create(**asked, extra_body={"sae": {**HUGE, "gate": "generated"}}):
                seen.append(chunk)
    assert len(seen) == 1


def test_who_leaves_ends_its_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_runtime.generation.loop import Loop

    step = Loop.step

    def slow(self: Loop) -> Any:
        time.sleep(0.05)
        return step(self)

    monkeypatch.setattr(Loop, "step", slow)
    asked = {**CHAT, "max_tokens": 48, "temperature": 0, "n": 3}
    for stream in (True, False):
        begun = time.monotonic()
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.4) as client:
            with client.stream("POST", f"{served.url}/v1/chat/completions", json={**asked, "stream": stream}) as answer:
                for _ in answer.iter_lines():
                    if time.monotonic() - begun > 0.3:
                        raise httpx.ReadTimeout("this client leaves")
        while served.plane.admission.waiting and time.monotonic() - begun < 2:
            time.sleep(0.01)
        assert served.plane.admission.waiting == 0 and time.monotonic() - begun < 2  # 48 pieces take 2.4 s


def test_a_full_server_says_when_to_come_again(served: Served) -> None:
    for _ in range(LIMITS.waiting):
        served.plane.admission.enter(0)
    try:
        answer = httpx.post(f"{served.url}/v1/completions", json={"model": "writer", "prompt": "w1"})
    finally:
        for _ in range(LIMITS.waiting):
            served.plane.admission.leave(0)
    assert (
        answer.status_code == 503
        and answer.headers["Retry-After"] == "1"
        and "again" in json.loads(answer.text)["error"]["message"]
    )
