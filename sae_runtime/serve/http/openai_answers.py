"""Answers in the form of OpenAI's protocol, whole or piece by piece."""

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from sae_runtime.generation.request import Piece
from sae_runtime.model import Model
from sae_runtime.serve import json_text
from sae_runtime.serve.http.openai_request import WritingRequest
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.token_objects import TokenObjects
from sae_runtime.serve.writing import Written

Event = tuple[int, Piece, list[int]]
"""The number of an answer, a piece of it, and the tokens that were read for the piece."""

_REASONS = {"end": "stop", "stop": "stop", "length": "length", None: None}


class Answers:
    """The answers to one request, which are written together, and their pieces in the order in which they come.

    Attributes:
        futures: of the answers.

    Args:
        plane: that writes them.
        ask: the request.
    """

    def __init__(self, plane: Plane, ask: WritingRequest) -> None:
        self._plane, self._ask = plane, ask
        self._events = asyncio.Queue[tuple[int, Piece | None, list[int]]]()
        self._loop = asyncio.get_running_loop()
        self.futures: list[Future[Written]] = []

    def __len__(self) -> int:
        return self._ask.n * len(self._ask.prompts)

    def start(self) -> None:
        """Let the plane begin. Reading a long prompt takes a while, so this is no work for the event loop's thread.

        Raises:
            Refused: the plane takes one of them not; then it writes none.
        """
        ask = self._ask
        try:
            for number in range(len(self)):
                future = self._plane.generate(
                    ask.model.name,
                    ask.prompts[number // ask.n],
                    ask.asked.edits,
                    ask.asked.gate,
                    version=ask.model.version,
                    on_piece=functools.partial(self._tell, number),
                    **ask.settings_of(number % ask.n),
                )
                self.futures.append(future)
                future.add_done_callback(lambda _, number=number: self._tell(number, None, []))  # type: ignore[misc]
        except BaseException:
            self.cancel()
            raise

    def _tell(self, number: int, piece: Piece | None, read: list[int]) -> None:
        """Called by the plane's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, piece, read))

    async def pieces(self) -> AsyncIterator[Event]:
        """The pieces of all answers, as they come.

        Raises:
            Refused: one of them failed.
        """
        left = len(self)
        while left:
            number, piece, read = await self._events.get()
            if piece is None:
                self.futures[number].result()
                left -= 1
            else:
                yield number, piece, read

    def written(self) -> list[Written]:
        """The answers, when all pieces have come."""
        return [future.result() for future in self.futures]

    def cancel(self) -> None:
        """Write no more of them."""
        for future in self.futures:
            future.cancel()


class AnswerObjects:
    """Makes the objects of the protocol out of pieces.

    Args:
        plane: that writes.
        ask: the request.
        chat: whether it is of /v1/chat/completions.
    """

    def __init__(self, plane: Plane, ask: WritingRequest, *, chat: bool) -> None:
        model = plane.find(ask.model.name, ask.model.version).model
        assert model is not None
        self._ask, self._chat, self._model = ask, chat, model
        self._shown = token_objects(model, ask.asked.features) if ask.asked.features else None
        self._id, self._created = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, answers: Sequence[Written]) -> dict[str, Any]:
        """The object of whole answers."""
        choices = []
        for number, written in enumerate(answers):
            text = {"message": {"role": "assistant", "content": written.text, "refusal": None}}
            told: dict[str, Any] = {"index": number, **(text if self._chat else {"text": written.text})}
            told |= {"logprobs": None, "finish_reason": _REASONS[written.finished]}
            if self._shown is not None:
                reads = [written.prompt, *([number] for number in written.ids)]
                read = zip(reads, written.pieces, strict=False)
                told["sae"] = {
                    "tokens": [one for ids, piece in read for one in self._shown.tokens(ids, piece.features)]
                }
            choices.append(told)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Written]) -> dict[str, int]:
        """The number of tokens that were read and written."""
        read = sum(len(one.prompt) for one in answers[:: self._ask.n])
        new = sum(len(one.ids) for one in answers)
        return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}

    async def chunks(self, pieces: AsyncIterator[Event], answers: Answers) -> AsyncIterator[bytes]:
        """The events of a stream."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = {**self._head(kind), **({"usage": None} if self._ask.usage else {})}
        begun = set[int]()
        async for number, piece, read in pieces:
            first = number not in begun
            begun.add(number)
            if not (first or piece.text or piece.finished or self._shown):
                continue
            text: dict[str, Any] = {"text": piece.text}
            if self._chat:
                text = {"delta": {**({"role": "assistant"} if first else {}), "content": piece.text}}
            told = {"index": number, **text, "logprobs": None, "finish_reason": _REASONS[piece.finished]}
            if self._shown is not None:
                told["sae"] = {"tokens": self._shown.tokens(read, piece.features)}
            yield event({**head, "choices": [told]})
        if self._ask.usage:
            yield event({**head, "choices": [], "usage": self.usage(answers.written())})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._ask.model.text}


def token_objects(model: Model, most: int) -> TokenObjects:
    """What shows tokens of a deployed model with so many features each."""
    labels = {name: _labels(model, name) for name, sae in model.saes.items() if sae.reads}
    return TokenObjects(model.tokenizer.token, labels, most)


def event(told: Mapping[str, Any]) -> bytes:
    """An event of a stream."""
    return b"data: " + json_text.to_bytes(told) + b"\n\n"


def _labels(model: Model, name: str) -> Mapping[int, str]:
    try:
        return model.saes[name].labels
    except (ValueError, OSError):  # without a bundle there are none
        return {}
