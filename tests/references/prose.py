"""Help texts and docstrings as Markdown."""

import dataclasses
import re
from collections.abc import Iterator

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Examples", "Example", "Note")


def escaped(text: str) -> str:
    """A plain text whose signs mean nothing in Markdown; what stands in backticks stays, and options get backticks.

    >>> escaped("--k of [t, d_in] * 2, not `a*b` <x>")
    '`--k` of [t, d_in] \\\\* 2, not `a*b` &lt;x>'
    """
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [
        re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", re.sub(r"([*])", r"\\\1", part.replace("<", "&lt;")))
        for part in parts[::2]
    ]
    return "".join(parts)


def cell(text: str) -> str:
    """A text for a table: one line, in which `|` separates nothing."""
    return escaped(" ".join(text.split())).replace("|", "&#124;")


def fenced(text: str) -> str:
    """A block that is shown as it is."""
    return f"```text\n{text.rstrip()}\n```"


def wrapped(text: str, width: int = 118, indent: str = "") -> str:
    """A paragraph in lines that are not too long; code in backticks is not parted.

    >>> wrapped("one `two three` four", 11)
    'one\\n`two three`\\nfour'
    """
    words = re.findall(r"(?:`[^`]*`|\S)+", text)
    lines, line = list[str](), ""
    for word in words:
        if line and len(line) + 1 + len(word) > width - (len(indent) if lines else 0):
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return f"\n{indent}".join([*lines, line])


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a docstring: `title` is empty for the text at its beginning."""

    title: str
    lines: tuple[str, ...]


def sections(docstring: str) -> Iterator[Section]:
    """The parts of a docstring that was cleaned, as Google's style writes them; an example ends what is before it."""
    title, lines = "", list[str]()
    for line in docstring.splitlines():
        named = re.fullmatch(r"(\w+):", line)
        if named and named[1] in _SECTIONS:
            yield Section(title, tuple(lines))
            title, lines = named[1], []
        elif title and line and not line.startswith(" "):
            yield Section(title, tuple(lines))
            title, lines = "", [line]
        else:
            lines.append(line[4:] if title and line.startswith("    ") else line)
    yield Section(title, tuple(lines))


def markdown_of(docstring: str) -> str:
    """A docstring as Markdown: paragraphs, lists of arguments and errors, examples as blocks."""
    parts = []
    for section in sections(docstring):
        text = "\n".join(section.lines).strip("\n")
        if not text:
            continue
        if section.title in ("Args", "Attributes", "Raises"):
            names = {"Args": "Arguments", "Raises": "Errors"}
            parts.append(f"{names.get(section.title, section.title)}:\n\n{_items(section.lines)}")
        else:
            word = f"{section.title}: " if section.title in ("Returns", "Yields", "Note") else ""
            parts += _paragraphs(word + text)
    return "\n\n".join(parts)


def _items(lines: tuple[str, ...]) -> str:
    """The entries of a list `name: what it is`."""
    entries: list[str] = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line.strip())
    written = []
    for entry in entries:
        name, colon, text = entry.partition(": ")
        plain = not colon or not re.fullmatch(r"[\w.,* ]+(?:\([^)]*\))?", name)
        written.append(wrapped("- " + (escaped(entry) if plain else f"`{name}`: {escaped(text)}"), indent="  "))
    return "\n".join(written)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, lists and examples of a text."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        example = next((number for number, line in enumerate(lines) if line.startswith(">>>")), len(lines))
        before, shown = lines[:example], lines[example:]
        if before and all(line.startswith("    ") for line in before):
            yield fenced("\n".join(line[4:] for line in before))
        elif any(re.match(r"\s*- ", line) for line in before):
            yield "\n".join(escaped(line) for line in before)
        elif before:
            yield wrapped(escaped(" ".join(line.strip() for line in before)))
        if shown:
            yield fenced("\n".join(shown))
