"""Answers of a language model: the requests of all callers join one running batch, and leave it."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.core.edits import Edit
from sae_runtime.deployed.batching import TOKENS
from sae_runtime.generation.request import Finished, Piece, Request
from sae_runtime.generation.sampling import Sampling
from sae_runtime.model import Model
from sae_runtime.serve.errors import Invalid, TooLarge
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.operation import Operation
from sae_runtime.serve.scheduler import Job
from sae_runtime.serve.tensors import BYTES, Arrays, Tensor, as_bytes

Prompt = str | Sequence[Mapping[str, Any]]
OnPiece = Callable[[Piece, list[int]], object]
"""Is called with each piece, and with the ids of the tokens that were read for it, whose features it has."""

_PARAMETERS = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")


@dataclass(frozen=True)
class Written:
    """A whole answer.

    Attributes:
        text: that was written.
        ids: of its tokens.
        prompt: ids of the prompt's tokens.
        finished: why it ended.
        pieces: of the answer, whose texts are `text`. The first has the features of the prompt's tokens, each other one
            that of the token before its own.
    """

    text: str
    ids: list[int]
    prompt: list[int]
    finished: Finished
    pieces: list[Piece]


@dataclass(eq=False)
class Writing:
    """An answer on its way, the work of a `Job`.

    Attributes:
        request: of the loop.
        on_piece: is called by the thread that computes, so it must be quick.
        pieces: so far.
    """

    request: Request
    on_piece: OnPiece | None = None
    pieces: list[Piece] = field(default_factory=list)


class WritingLane:
    """Writes the answers to the requests of a language model, a token of each with every tick.

    Args:
        model: the language model.
        limits: of the server.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._loop = model.loop()  # this lane's alone: it holds the graph, whatever else opens
        self._arrived = deque[Job]()  # from other threads
        self._running: dict[Request, Job] = {}

    def read(
        self,
        prompt: Prompt,
        edits: Mapping[str, Sequence[Edit]],
        gate: Any = "all",
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        features: bool = False,
        chat: Mapping[str, Any] | None = None,
        on_piece: OnPiece | None = None,
    ) -> Writing:
        """An answer that can be put into the lane, on the caller's thread.

        Args:
            prompt: a text or messages; all others are as in `Model.generate`, but for edits and on_piece.
            edits: of each SAE, in plain numbers.
            gate: the tokens that the edits reach.
            max_new_tokens: the most tokens of the answer; None: as many as the server allows.
            temperature: divides the logits.
            top_p: draw from the most likely tokens of this probability together.
            top_k: draw from so many tokens.
            seed: of the random numbers.
            stop: strings that end the answer.
            features: give features with each piece.
            chat: settings of the chat template.
            on_piece: is called with each piece.

        Raises:
            ValueError: a prompt or a setting cannot be used.
            TooLarge: the prompt or the answer exceeds a limit.
        """
        self._limits.check(characters=sum(map(len, texts_of(prompt))))
        most = self._limits.new_tokens if max_new_tokens is None else max_new_tokens
        request = self._model.request(
            prompt,
            edits,
            gate=gate,
            max_new_tokens=most,
            sampling=Sampling(temperature, top_p, top_k, seed),
            stop=stop,
            features=features,
            chat=chat,
        )
        if most > self._limits.new_tokens:
            raise TooLarge(
                f"an answer of {most} tokens was asked for, and this server writes at most "
                f"{self._limits.new_tokens}; ask for fewer"
            )
        self._loop.check(request)
        return Writing(request, on_piece)

    def accept(self, work: Any, parameters: Mapping[str, Any]) -> tuple[Writing, int]:
        """Likewise, of texts with edits (`text_operations.Work`) and of the parameters of a protocol."""
        if len(work.texts) != 1:
            raise Invalid(f"generate answers one text, got {len(work.texts)}; ask once for each")
        settings = {name: parameters[name] for name in _PARAMETERS if name in parameters}
        return self.read(work.texts[0], work.edits[0], work.gates[0], **settings), 1

    def put(self, job: Job) -> None:
        """Let an answer wait for its turn."""
        self._arrived.append(job)

    def ready(self) -> bool:
        """Whether an answer waits or is written."""
        return bool(self._arrived or self._running)

    def tick(self) -> None:
        """Choose the next token of each answer that is written, and let some begin."""
        now = time.monotonic()
        for request in [request for request, job in self._running.items() if job.is_gone(now)]:
            self._loop.remove(request)
            del self._running[request]
        self._begin(now)
        try:
            steps = self._loop.step()
        except Exception as error:  # of the graph, so of all of them; the runner serves others, and lives on
            self._end_all(error)
            return
        for request, got in steps:
            self._take(self._running[request], request, got)

    def fail(self, error: Exception) -> None:
        """End all answers with an error."""
        self._end_all(error)
        while self._arrived:
            self._arrived.popleft().fail(error)

    def _begin(self, now: float) -> None:
        """Let answers join, with about as many tokens of prompts as a run of the graph reads well."""
        for job in [job for job in self._arrived if job.is_gone(now)]:  # those who wait may be over too
            self._arrived.remove(job)
        tokens = 0
        while self._arrived and len(self._running) < self._limits.answers and tokens < TOKENS:
            request = self._arrived[0].work.request
            tokens += len(request)
            if tokens > TOKENS and tokens > len(request):
                break
            job = self._arrived.popleft()
            self._loop.add(request)
            self._running[request] = job

    def _take(self, job: Job, request: Request, got: Piece | Exception) -> None:
        """Hand on a piece of an answer, or its error."""
        if isinstance(got, Exception):
            del self._running[request]
            job.fail(got)
            return
        writing: Writing = job.work
        writing.pieces.append(got)
        try:
            if writing.on_piece is not None:
                writing.on_piece(got, request.ids[-2:-1] or request.tokens.ids.tolist())
            if got.finished is not None:
                del self._running[request]
                text = "".join(piece.text for piece in writing.pieces)
                prompt: list[int] = request.tokens.ids.tolist()
                job.answer(Written(text, request.ids, prompt, got.finished, writing.pieces))
        except Exception as error:  # of whoever takes the pieces
            self._running.pop(request, None)
            self._loop.remove(request)
            job.fail(error)

    def _end_all(self, error: Exception) -> None:
        for request, job in self._running.items():
            self._loop.remove(request)
            job.fail(error)
        self._running.clear()


def writing_operation(
    model: Model,
    limits: Limits,
    accept: Callable[[Arrays, Mapping[str, Any]], tuple[Any, int]],
    asked: Sequence[Tensor],
) -> Operation:
    """The operation `generate` of a language model.

    Args:
        model: the language model.
        limits: of the server.
        accept: makes texts with edits of tensors.
        asked: the tensors of edits.
    """
    lane = WritingLane(model, limits)
    text = Tensor("text", BYTES, (1,))
    return Operation(
        "generate",
        (text, *asked),
        (text, Tensor("finished", BYTES, (1,))),
        lambda arrays, parameters: lane.accept(accept(arrays, {})[0], parameters),
        lane,
        tensors=lambda written: {"text": as_bytes([written.text]), "finished": as_bytes([written.finished])},
    )


def texts_of(prompt: Any) -> list[str]:
    """The texts in a prompt, as far as it has the form of one."""
    if isinstance(prompt, str):
        return [prompt]
    contents = [message.get("content") for message in prompt if isinstance(message, Mapping)]
    return [content for content in contents if isinstance(content, str)]
