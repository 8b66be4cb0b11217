"""Chat templates write what transformers' apply_chat_template writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES
from small_tokenizers import save_tokenizer
from transformers import AutoTokenizer

from sae_runtime.text.tokenizer import open_tokenizer

SMOLLM2 = Path(".venv/smollm2")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "größe",
            "description": '<d> & "q"',
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
ASKED = [{"role": "user", "content": "  Hi 😀 <b>\nthere "}]
TALK = [*ASKED, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "More"}]
CHATS: dict[str, list[dict[str, Any]]] = {
    **{"asked": ASKED, "talk": TALK, "system": [{"role": "system", "content": "Be brief. "}, *TALK]},
    "twice": [*ASKED, *ASKED],
    "reasoning": [*ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes", "tool_calls": None}],
    "thinking": [*TALK, {"role": "assistant", "thinking": "hm", "content": "Yes"}],
    "tool": [
        *ASKED,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "größe", "arguments": {"a": 1.5, "b": ["<", None]}}}
            ],
        },
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ],
    "long": TALK * 60,
}
SETTINGS: list[dict[str, Any]] = [
    *({}, {"add_generation_prompt": True}, {"tools": TOOLS}, {"tools": TOOLS, "tools_in_user_message": False}),
    *({"enable_thinking": False, "add_generation_prompt": True}, {"date_string": "1 May 2026", "x": 3}),
]


def same(folder: Path) -> None:
    ours, theirs = open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for chat in CHATS.values():
        for settings in SETTINGS:
            try:
                expected = theirs.apply_chat_template(chat, tokenize=False, **settings)
            except Exception as error:  # the template's own complaint
                with pytest.raises(ValueError, match="the chat template in .* fails") as raised:
                    ours.chat(chat, **settings)
                assert " ".join(str(error).split()) in str(raised.value)
            else:
                assert ours.chat(chat, **settings) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    same(save_tokenizer(tmp_path / "t", "byte level", chat_template=FAMILIES[family]))


@pytest.mark.skipif(not (SMOLLM2 / "chat_template.jinja").is_file(), reason="make smollm2")
def test_smollm2() -> None:
    same(SMOLLM2)


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": FAMILIES["chatml"]}, {"name": "tool_use", "template": FAMILIES["qwen"]}]
    same(save_tokenizer(tmp_path / "list", "byte level", chat_template=named))
    folder = save_tokenizer(tmp_path / "files", "byte level", chat_template="not this one")
    (folder / "chat_template.jinja").write_text(FAMILIES["chatml"])
    same(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(FAMILIES["llama"])
    same(folder)


def test_a_template_of_a_processor(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", "words")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": FAMILIES["chatml"]}))
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(TALK, chat_template=FAMILIES["chatml"], tokenize=False)
    assert open_tokenizer(folder).chat(TALK) == expected
