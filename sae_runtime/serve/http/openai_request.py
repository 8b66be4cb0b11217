"""What a request of OpenAI's protocol asks, read out of its JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.core.labels import shown
from sae_runtime.serve.edit_objects import SaeObject, read_sae_object
from sae_runtime.serve.errors import Invalid, TooLarge
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.writing import Prompt

# Fields that would change the answer, with the value that asks for nothing. All others that are unknown are passed
# over, as other servers do.
_NOT_HERE: dict[str, Any] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "functions": [],
    "ignore_eos": False,
    "logit_bias": {},
    "logprobs": False,
    "min_p": 0,
    "min_tokens": 0,
    "modalities": ["text"],
    "presence_penalty": 0,
    "prompt_logprobs": None,
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "stop_token_ids": [],
    "suffix": "",
    "tools": [],
    "top_logprobs": 0,
    "web_search_options": None,
}
_MOST_STOPS = 16
_COMPLETION_TOKENS = 16  # of an answer of /v1/completions whose caller names no number, as OpenAI has it


class BadField(Invalid):
    """A field of a request has a value that cannot be used.

    Attributes:
        param: the field.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class ModelName:
    """A model as callers name it: NAME, or NAME@VERSION."""

    text: str
    name: str
    version: str | None


@dataclass(frozen=True)
class WritingRequest:
    """A request for answers.

    Attributes:
        model: that answers.
        prompts: each gets `n` answers.
        n: answers of a prompt.
        asked: edits, gate and features.
        settings: of `Plane.generate` besides.
        stream: whether pieces are sent as they are written.
        usage: whether a stream ends with its usage.
    """

    model: ModelName
    prompts: Sequence[Prompt]
    n: int
    asked: SaeObject
    settings: Mapping[str, Any]
    stream: bool
    usage: bool

    def settings_of(self, number: int) -> dict[str, Any]:
        """The settings of one of the answers of a prompt: with a seed, each has random numbers of its own."""
        seed = self.settings["seed"]
        return {**self.settings, "seed": None if seed is None else (seed + number) % 2**64}


def read_model(given: Mapping[str, Any]) -> ModelName:
    """The model that a request names."""
    text = given.get("model")
    if not isinstance(text, str) or not text:
        raise BadField("model", f"model is the name of a model of /v1/models, got {_said(text)}; give one")
    name, at, version = text.rpartition("@")
    return ModelName(text, name, version) if at else ModelName(text, text, None)


def read_sae(given: Mapping[str, Any], limits: Limits) -> SaeObject:
    """The `sae` object of a request."""
    try:
        return read_sae_object(given.get("sae"), limits)
    except TooLarge:
        raise
    except Invalid as error:
        raise BadField("sae", str(error)) from None


def read_texts(given: Mapping[str, Any], field: str, limits: Limits) -> list[str]:
    """The texts of a field that is a text or a list of them."""
    value = given.get(field)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise BadField(field, f"{field} is a text or a list of texts, got {_said(value)}; give one")
    limits.check(texts=len(texts))
    for text in texts:
        if type(text) is int or isinstance(text, list):
            raise BadField(field, f"{field} holds numbers of tokens, and this server takes texts alone; give the text")
        if not isinstance(text, str):
            raise BadField(field, f"{field} is a text or a list of texts, got {_said(text)} in it; give texts")
    return texts


def read_chat(given: Mapping[str, Any], limits: Limits) -> WritingRequest:
    """A request of /v1/chat/completions."""
    most = "max_completion_tokens" if given.get("max_completion_tokens") is not None else "max_tokens"
    unused = _pick(given, "tool_choice", str) == "none"
    chat = given.get("chat_template_kwargs")
    if chat is not None and (not isinstance(chat, dict) or {"self", "messages"} & set(chat)):
        raise BadField(
            "chat_template_kwargs", "chat_template_kwargs is an object of settings of the template; give one"
        )
    more = {"chat": chat or {}, "max_new_tokens": _whole(given, most, 1)}
    prompts = [_messages(given.get("messages"))]
    return _ask({**given, "tools": None, "functions": None} if unused else given, prompts, limits, more)


def read_completion(given: Mapping[str, Any], limits: Limits) -> WritingRequest:
    """A request of /v1/completions."""
    most = _whole(given, "max_tokens", 1)
    more = {"max_new_tokens": min(_COMPLETION_TOKENS, limits.new_tokens) if most is None else most}
    return _ask(given, read_texts(given, "prompt", limits), limits, more)


def _ask(
    given: Mapping[str, Any], prompts: Sequence[Prompt], limits: Limits, more: Mapping[str, Any]
) -> WritingRequest:
    for name, nothing in _NOT_HERE.items():
        if (value := given.get(name)) is not None and value != nothing and value not in ([], {}, ""):
            raise BadField(name, f"{name} is not known to this server, got {_said(value)}; leave it out")
    model, asked, n = read_model(given), read_sae(given, limits), _whole(given, "n", 1)
    n = 1 if n is None else n
    if n * len(prompts) > limits.texts:
        raise TooLarge(
            f"{n * len(prompts)} answers were asked for, and this server writes {limits.texts}; ask for fewer"
        )
    options = _pick(given, "stream_options", dict) or {}
    temperature, top_p = _pick(given, "temperature", int, float), _pick(given, "top_p", int, float)
    settings = {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": _whole(given, "top_k", -1) or None,
        "seed": _whole(given, "seed", -(2**63)),
        "stop": _stop(given.get("stop")),
        "features": asked.features > 0,
        **more,
    }
    if settings["top_k"] == -1:  # as other servers say: all
        settings["top_k"] = None
    stream = bool(_pick(given, "stream", bool))
    usage = options.get("include_usage")
    if not isinstance(usage, bool | None):
        raise BadField("stream_options", f"include_usage is true or false, got {_said(usage)}; give one")
    return WritingRequest(model, prompts, n, asked, settings, stream, bool(usage))


def _messages(given: Any) -> list[dict[str, Any]]:
    """The messages of a conversation as chat templates know them."""
    if not isinstance(given, list) or not given:
        raise BadField(
            "messages", f"messages is a list of messages with role and content, got {_said(given)}; give one"
        )
    return [_message(message, f"messages[{number}]") for number, message in enumerate(given)]


def _message(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadField("messages", f"{where} is an object with role and content, got {_said(given)}; give one")
    if not isinstance(given.get("role"), str):
        raise BadField("messages", f"the role of {where} is a string, got {_said(given.get('role'))}; give one")
    role = "system" if given["role"] == "developer" else given["role"]  # newer clients' word for it
    content = given.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, where) for part in content)
    if not isinstance(content, str | None):
        raise BadField("messages", f"the content of {where} is text, got {_said(content)}; give text")
    return {**given, "role": role, "content": content}


def _part(given: Any, where: str) -> str:
    """The text of a part of a message."""
    kind = given.get("type") if isinstance(given, dict) else None
    text = given.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise BadField("messages", f"{where} has a part {_said(kind)}, and this server reads text alone; give text")
    return text


def _stop(given: Any) -> list[str]:
    strings = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise BadField(
            "stop", f"stop is a string or a list of strings that are not empty, got {_said(given)}; give one"
        )
    if len(strings) > _MOST_STOPS:
        raise TooLarge(f"{len(strings)} stop strings were given, and this server takes {_MOST_STOPS}; give fewer")
    return strings


def _pick(given: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A field, if it is there and not null."""
    value = given.get(name)
    if value is not None and type(value) not in kinds:
        if name == "tool_choice":  # an object names a tool
            return None
        what = {bool: "true or false", dict: "an object", str: "a string"}.get(kinds[0], "a number")
        raise BadField(name, f"{name} is {what}, got {_said(value)}; give it, or leave {name} out")
    return value


def _whole(given: Mapping[str, Any], name: str, least: int) -> int | None:
    """A whole number, if it is there and not null."""
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value < 2**64:
        start = f" from {least} on" if least >= 0 else ""
        raise BadField(name, f"{name} is a whole number{start}, got {_said(value)}; give one")
    return value


def _said(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list" if value else "an empty list"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)
