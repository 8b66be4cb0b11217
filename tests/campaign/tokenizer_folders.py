"""Strangers' tokenizers and chat templates: any file of the folder changed, then texts and a talk go through it.

A folder is refused with one sentence, or its tokens fit windows, streamed text equals the whole, and a talk is written
or refused with one sentence.
"""

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

from campaign.fuzzing import FAULT, fuzz
from campaign.mutations import apply
from campaign.mutations import draw as draw_changes
from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer

KINDS = ("byte level", "word piece", "unigram", "sentence piece")
TALK = [
    {"role": "user", "content": "Hi 😀"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "So?"},
]


def run(seconds: float, folder: Path, seed: int = 0, processes: int = 1) -> dict[str, int]:
    """Judge changed tokenizers for this time."""
    return fuzz("tokenizer_folders", seconds, folder, seed, processes)


def prepare(home: Path) -> None:
    """Write small tokenizers, each with a chat template."""
    from chat_templates import FAMILIES
    from small_tokenizers import save_tokenizer

    for kind, family in zip(KINDS, ("llama", "qwen", "controls", "mistral"), strict=True):
        folder = save_tokenizer(home / kind, kind)
        (folder / "chat_template.jinja").write_text(FAMILIES[family])


def draw(rng: random.Random, home: Path) -> dict[str, Any]:
    """A tokenizer, changes of its files, and parts of templates in another order."""
    kind = rng.choice(KINDS)
    if rng.random() < 0.5:
        return {"kind": kind, "changes": draw_changes(rng, home / kind)}
    from chat_templates import FAMILIES, HOSTILE

    parts = [
        part for source in (*FAMILIES.values(), *HOSTILE.values()) for part in source.replace("{", "\n{").split("\n")
    ]
    return {"kind": kind, "template": "\n".join(rng.choices(parts, k=rng.randint(1, 30)))[:20_000]}


def judge(given: dict[str, Any], home: Path) -> str:
    """The outcome of a tokenizer with these changes."""
    path = home / "changed"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    shutil.copytree(home / given["kind"], path)
    apply(path, given.get("changes", ()))
    if "template" in given:
        (path / "chat_template.jinja").write_text(given["template"], errors="replace")
    try:
        tokenizer = open_tokenizer(path)
        if fault := _fault(tokenizer):
            return FAULT + fault
        return "written" if tokenizer.chat(TALK, add_generation_prompt=True) else "written, and empty"
    except (ValueError, OSError) as error:
        return f"{FAULT}it says several lines" if "\n" in str(error) else "refused"


def _fault(tokenizer: Tokenizer) -> str | None:
    from small_tokenizers import odd_texts

    for text in odd_texts(30)[::3]:
        (tokens,) = tokenizer.encode([text])
        if any(len(window) > 12 for window in tokenizer.windows(text, 12)):
            return "a window is too long"
        stream = tokenizer.stream()
        if "".join([*map(stream.push, tokens.ids.tolist()), stream.end()]) != tokenizer.decode(tokens.ids.tolist()):
            return f"streamed text differs from the whole: {text[:40]!r}"
    return None
