"""What a block printed beside what its page says that it prints."""

import difflib
import re

_DOTS = re.compile(r"…|\.\.\.")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?%?")
_LOOSE_NUMBER = r"[-+]?\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?%?"


def difference(said: str, candidates: list[str], *, exact: bool = False) -> str | None:
    """None if one of the candidates is what the page says; else the lines that differ from the first of them.

    Spaces at the ends of lines and blank lines around the whole never count. Otherwise words count, but a number stands
    for every number, and `…` or `...` for anything in the line, or alone in a line for any number of lines.

    Examples:
        >>> difference("L0 8.1 of 256 features", ["L0   7.9 of 1,024 features"])
        >>> difference("first", ["second"])
        '- first\\n+ second'
    """
    if exact:
        found = any(_lines(said) == _lines(printed) for printed in candidates)
    else:
        pattern = re.compile("".join(_patterns(_lines(said))))
        found = any(pattern.fullmatch("".join(line + "\n" for line in _lines(one))) for one in candidates)
    if found:
        return None
    rows = difflib.ndiff(_lines(said), _lines(candidates[0]))
    return "\n".join(row for row in rows if not row.startswith("?"))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _patterns(lines: list[str]) -> list[str]:
    return [r"(?:.*\n)*?" if _DOTS.fullmatch(line.strip()) else _pattern(line) + r"\n" for line in lines]


def _pattern(line: str) -> str:
    """A regular expression for one line."""
    parts = []
    for part in re.split(r"(…|\.\.\.|\s+)", line):
        if _DOTS.fullmatch(part):
            parts.append(".*?")
        elif part.isspace():
            parts.append(r"\s+")
        else:
            parts.append(_LOOSE_NUMBER.join(map(re.escape, _NUMBER.split(part))))
    return "".join(parts) + r"\s*?"
