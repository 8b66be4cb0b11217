"""Chat templates: how a folder writes a conversation as one text. A template is a stranger's program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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

    def render(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
        """The text of a conversation."""
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        given = {"add_generation_prompt": False, **self.special_tokens, **settings}
        return environment.from_string(self.sources["default"]).render(messages=messages, **given)


def read_templates(home: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> ChatTemplates:
    """The chat templates in the files of a folder."""
    path = home / "chat_template.jinja"
    source = path.read_text() if path.exists() else config.get("chat_template")
    return ChatTemplates(home, {} if source is None else {"default": source}, special_tokens)
