"""Puts features into the answers of vLLM's API server, whole or as a stream of events."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from sae_runtime.serve.errors import Full

_END = b"\n\n"  # of an event
_DONE = b"data: [DONE]"


@dataclass
class ChoiceTokens:
    """The ids of the tokens of a choice: those of its prompt, and the written ones."""

    prompt: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    @property
    def read(self) -> list[int]:
        """The tokens that the model read; the last one is written and not read."""
        return [*self.prompt, *self.written][:-1]


TokenObjectsOf = Callable[[Sequence[ChoiceTokens]], Awaitable[list[list[dict[str, Any]]]]]
"""Gives the token objects of all choices, in their order."""


class Choices:
    """The choices of an answer, whose token ids come in one object or in many.

    Args:
        show_ids: whether the caller sees the ids, or they are taken out.
    """

    def __init__(self, *, show_ids: bool) -> None:
        self._show_ids, self._tokens = show_ids, dict[int, ChoiceTokens]()

    def take(self, told: dict[str, Any]) -> None:
        """Note the ids in an object of the protocol."""
        for choice in told["choices"]:
            tokens = self._tokens.setdefault(choice["index"], ChoiceTokens())
            tokens.prompt = choice.get("prompt_token_ids") or told.get("prompt_token_ids") or tokens.prompt
            tokens.written += choice.get("token_ids") or []
        for one in () if self._show_ids else (told, *told["choices"]):
            one.update(dict.fromkeys({"prompt_token_ids", "token_ids"} & set(one)))

    def in_order(self) -> list[ChoiceTokens]:
        """The tokens of each choice."""
        return [self._tokens[number] for number in sorted(self._tokens)]


async def whole(body: bytes, features: TokenObjectsOf, *, show_ids: bool) -> bytes:
    """An answer with the features of each choice.

    Args:
        body: of vLLM's answer.
        features: of its choices.
        show_ids: whether the caller asked for token ids too.

    >>> async def features(choices):
    ...     return [[{"id": number} for number in tokens.read] for tokens in choices]
    >>> body = b'{"choices": [{"index": 0, "prompt_token_ids": [7, 8], "token_ids": [9]}]}'
    >>> import asyncio
    >>> json.loads(asyncio.run(whole(body, features, show_ids=False)))["choices"][0]["sae"]
    {'tokens': [{'id': 7}, {'id': 8}]}
    """
    told = json.loads(body)
    choices = Choices(show_ids=show_ids)
    choices.take(told)
    for choice, tokens in zip(told["choices"], await features(choices.in_order()), strict=True):
        choice["sae"] = {"tokens": tokens}
    return json.dumps(told).encode()


class Stream:
    """Puts features into a stream of events.

    They stand in chunks of their own, one for each choice, behind the last piece of text and before the usage and the
    end. To ask the engine for each piece would hold up every request of the server at every token.

    Args:
        features: of the choices.
        show_ids: whether the caller asked for token ids too.
    """

    def __init__(self, features: TokenObjectsOf, *, show_ids: bool) -> None:
        self._features, self._choices = features, Choices(show_ids=show_ids)
        self._rest, self._head = b"", dict[str, Any]()
        self._given = False

    async def push(self, part: bytes) -> bytes:
        """What the caller gets for the next bytes of vLLM's stream.

        Args:
            part: the bytes, which may begin and end anywhere.
        """
        *events, self._rest = (self._rest + part).split(_END)
        return b"".join([await self._event(event) + _END for event in events])

    async def _event(self, event: bytes) -> bytes:
        if event.startswith(_DONE):
            return await self._chunks() + event
        told = _read(event)
        if not isinstance(told.get("choices"), list):
            self._given |= "error" in told  # after it there are no features
            return event
        before = b"" if told["choices"] else await self._chunks()
        self._head = {key: told[key] for key in ("id", "object", "created", "model") if key in told}
        self._choices.take(told)
        return before + _event(told)

    async def _chunks(self) -> bytes:
        """The chunks with features, once."""
        if self._given:
            return b""
        self._given = True
        text: dict[str, Any] = {"text": ""} if self._head.get("object") == "text_completion" else {"delta": {}}
        try:
            found = await self._features(self._choices.in_order())
        except Full as error:
            return _event(error_object(str(error), 503)) + _END
        rest = {"logprobs": None, "finish_reason": None}
        return b"".join(
            _event({**self._head, "choices": [{"index": number, **text, **rest, "sae": {"tokens": tokens}}]}) + _END
            for number, tokens in enumerate(found)
        )


def error_object(message: str, code: int) -> dict[str, Any]:
    """An error as vLLM writes it.

    >>> error_object("this vLLM serves no SAE", 404)["error"]["type"]
    'Not Found'
    """
    return {"error": {"message": message, "type": HTTPStatus(code).phrase, "param": None, "code": code}}


def _read(event: bytes) -> dict[str, Any]:
    """The object of an event; empty if it has none."""
    try:
        told = json.loads(event.removeprefix(b"data:")) if event.startswith(b"data:") else None
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(told).encode()
