"""Chat templates: how a folder writes a conversation as one text. A template is a stranger's program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_runtime.bundle.extras import require, require_version
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.bundle.typed_json import read_file, shown
from sae_runtime.core.printable import printable
from sae_runtime.text.budget import Budget, budget

_DEEPEST = 32  # lists and mappings inside one another in a message
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning


@dataclass(frozen=True)
class ChatTemplates:
    """The chat templates of a folder by their names.

    Attributes:
        home: the folder.
        sources: the text of each template; "default" is the usual one, "tool_use" the one with tools.
        special_tokens: names such as "bos_token", which a template may use.
    """

    home: Path
    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, Any]], *, template: str | None = None, **settings: Any) -> str:
        """The text of a conversation, as transformers' `apply_chat_template` writes it.

        Args:
            messages: each has "role" and "content", and what the template knows besides.
            template: the name of one of several templates; None: "tool_use" if there are tools, else "default".
            settings: what the template knows: `add_generation_prompt`, `tools`, `documents`, and others.

        Raises:
            ImportError: Jinja is not installed.
            ValueError: the folder has no such template, a message has another form, or the template fails.
        """
        source = self.sources[self._chosen(template, settings.get("tools") is not None)]
        if settings.pop("continue_final_message", False):
            raise ValueError("continue_final_message is not known here; add the beginning of the answer to the text")
        given: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": False}
        given |= {**self.special_tokens, **_plain(settings, "a setting of the chat template")}
        return _rendered(source, self.home, {**given, "messages": _conversation(messages)})

    def _chosen(self, name: str | None, tools: bool) -> str:
        if not self.sources:
            raise ValueError(
                f"{self.home} has no chat template; give a prompt as text, or put the model's chat_template.jinja there"
            )
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            names = ", ".join(printable(one) for one in sorted(self.sources))
            raise ValueError(
                f"{self.home} has the chat templates {names}, got {name!r}; name one of them: template=..."
            )
        return name


def read_templates(home: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> ChatTemplates:
    """The chat templates in the files of a folder. Files of their own go before tokenizer_config.json.

    Raises:
        OSError: a file may not be read.
        ValueError: a template is no text.
    """
    sources: dict[str, Any] = {}
    for path in [home / "chat_template.jinja", *sorted((home / "additional_chat_templates").glob("*.jinja"))]:
        if path.is_file():
            refuse_link_out(path, home)
            name = "default" if path.parent == home else path.stem
            sources[name] = read_bytes(path).decode(errors="replace")
    if not sources and (path := home / "chat_template.json").is_file():
        refuse_link_out(path, home)
        sources = _named(read_file(dict[str, Any], path, foreign=True).get("chat_template"), path)
    sources = sources or _named(config.get("chat_template"), home / "tokenizer_config.json")
    return ChatTemplates(home, sources, special_tokens)


def _named(value: Any, path: Path) -> dict[str, str]:
    """The templates of a value: a text, a list of named ones, or an object of these."""
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        value = {one.get("name"): one.get("template") for one in value}
    found = {} if value is None else value if isinstance(value, Mapping) else {"default": value}
    for name, source in found.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise ValueError(
                f"{path}: chat_template must be text or a list of named texts, got {shown(value)}; mend it"
            )
    return dict(found)


def _conversation(messages: Any) -> list[dict[str, Any]]:
    """The messages as a template reads them."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(
            f'messages must be a list such as [{{"role": "user", "content": "Hi"}}], got {shown(messages)}'
        )
    told = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f'message {number} must have a "role" and a "content", got {shown(message)}')
        plain = {k: v for k, v in _plain(message, f"message {number}").items() if v is not None}
        if not isinstance(plain.get("content", ""), str | list):
            raise ValueError(f"the content of message {number} must be text, got {shown(plain['content'])}")
        if "content" not in plain and len(plain) == 1:
            raise ValueError(f'message {number} has no "content"; give it a text')
        reasoning = next((plain[key] for key in _REASONING if key in plain), None)
        told.append(plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning})
    return told


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of plain values: templates see no other objects."""
    if depth > _DEEPEST:
        raise ValueError(f"{where} has more than {_DEEPEST} lists and mappings inside one another; give less")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where, depth + 1): _plain(one, where, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, where, depth + 1) for one in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy
        return _plain(value.item(), where, depth + 1)
    raise ValueError(f"{where} holds a {type(value).__name__}; give text, numbers, lists and mappings")


def _rendered(source: str, home: Path, given: dict[str, Any]) -> str:
    _require_jinja()
    size = Budget(10**9).size(given)
    token = budget.set(Budget(*size))
    try:
        return str(_compiled(source).render(given))
    except Exception as error:  # the template's, whatever it is
        reason = printable(" ".join(str(error).split()) or type(error).__name__)[:300]
        raise ValueError(f"the chat template in {home} fails ({reason}); give a prompt as text, or mend it") from error
    finally:
        budget.reset(token)


@lru_cache(maxsize=1)
def _require_jinja() -> None:
    from importlib.metadata import version

    require("text")
    require_version("text", "jinja2", version("jinja2"), (3, 1, 6))


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    from sae_runtime.text.sandbox import LARGEST_SOURCE, Sandbox  # Jinja loads only where it is needed

    if len(source) > LARGEST_SOURCE:
        raise ValueError(f"it has more than {LARGEST_SOURCE:,} characters")
    return Sandbox().from_string(source)
