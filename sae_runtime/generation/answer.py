"""The answer to one prompt, piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_runtime.core.gates import as_gate
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Edits, Finished, Piece, Request
from sae_runtime.generation.sampling import Sampling
from sae_runtime.text.tokenizer import Tokenizer
from sae_runtime.text.tokens import Tokens

Messages = Sequence[Mapping[str, Any]]


class Answer(Iterator[Piece]):
    """The pieces of an answer. The model runs when the next one is asked for.

    Keys and values are freed with the last piece, by `close`, and when the answer is dropped.

    Attributes:
        finished: why the answer ended, as the last piece says; None: it goes on.

    >>> answer = model.generate("w1 w2", max_new_tokens=4)  # doctest: +SKIP
    >>> "".join(map(str, answer)) == answer.text  # doctest: +SKIP
    True
    """

    def __init__(self, loop: Loop, request: Request, edits: Any, plain: Callable[[Any], Edits]) -> None:
        """The answer to a request, which joins the loop; no other may be in it.

        Args:
            loop: a loop of its own.
            request: with the prompt.
            edits: as the caller gave them.
            plain: makes of such edits those of each SAE in plain numbers, or raises ValueError.
        """
        self._loop, self._request, self._plain, self._edits = loop, request, plain, edits
        self._text: list[str] = []
        self.finished: Finished | None = None
        loop.add(request)

    def __next__(self) -> Piece:
        if not len(self._loop):
            raise StopIteration
        while not (steps := self._loop.step()):  # a part of a long prompt was read
            pass
        ((_, got),) = steps
        if isinstance(got, Exception):
            raise got
        self._text.append(got.text)
        self.finished = got.finished
        return got

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return list(self._request.ids)

    @property
    def edits(self) -> Any:
        """The edits of the tokens that are read from now on. They may be set between two pieces."""
        return self._edits

    @edits.setter
    def edits(self, edits: Any) -> None:
        self._loop.edit(self._request, self._plain(edits))
        self._edits = edits

    def close(self) -> None:
        """End the answer here and free its keys and values."""
        self._loop.remove(self._request)


def read_request(
    tokenizer: Tokenizer,
    prompt: str | Messages,
    *,
    edits: Edits,
    gate: Any = "all",
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    features: bool = False,
    chat: Mapping[str, Any] | None = None,
) -> Request:
    """A request of a prompt, which may join a loop.

    Args:
        tokenizer: of the graph.
        prompt: a text, or the messages of a conversation for the folder's chat template.
        edits: of each SAE, in plain numbers.
        gate: the tokens that the edits reach, of `core.gates`.
        max_new_tokens: the most tokens of the answer.
        sampling: how tokens are chosen; None: always the most likely one.
        stop: strings that end the answer and are not shown.
        features: give features with each piece.
        chat: settings of the chat template.

    Raises:
        ValueError: the prompt, the gate or a setting cannot be used.
    """
    whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
    if not (whole and max_new_tokens >= 1):
        raise ValueError(f"max_new_tokens must be a whole number from 1 on, got {max_new_tokens!r}")
    given: Any = [stop] if isinstance(stop, str) else stop
    strings = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"stop must be strings that are not empty, got {stop!r}")
    if chat is not None and not isinstance(chat, Mapping):
        raise ValueError(f"chat must be a mapping of settings of the chat template, got {chat!r}")
    return Request(
        read_prompt(tokenizer, prompt, chat or {}),
        tokenizer.stream(),
        edits=edits,
        gate=as_gate(gate),
        sampling=sampling,
        most=int(max_new_tokens),
        stop=strings,
        features=bool(features),
    )


def read_prompt(tokenizer: Tokenizer, prompt: str | Messages, chat: Mapping[str, Any]) -> Tokens:
    """The tokens of a prompt; an empty one gets the token that begins texts, where the tokenizer has one.

    Raises:
        ValueError: it is neither a text nor messages, or the folder has no chat template.
    """
    if isinstance(prompt, str):
        (tokens,) = tokenizer.encode([prompt])
        begin = tokenizer.special_tokens.get("bos_token")
        return tokenizer.encode([begin], frame=False)[0] if len(tokens) == 0 and begin else tokens
    messages: list[Any] = list(prompt) if isinstance(prompt, Sequence) else []
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"a prompt is a text or a list of messages with role and content, got {type(prompt).__name__}")
    text = tokenizer.chat(messages, **{"add_generation_prompt": True, **chat})
    return tokenizer.encode([text], frame=False)[0]
