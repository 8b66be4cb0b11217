"""Text in the columns of a terminal, where a character may take two columns or none."""

import unicodedata
from collections.abc import Collection, Iterator, Sequence

from sae_runtime.core.printable import printable

_JOINER, _AS_EMOJI = "\u200d", "\ufe0f"


def _places(text: str) -> Iterator[tuple[str, int]]:
    """Each character with the columns that it adds, as terminals do that join emoji."""
    before, joined = 0, False
    for character in text:
        if character == _AS_EMOJI:  # a sign such as the heart becomes as wide as an emoji
            yield character, before % 2
            before += before % 2
            continue
        none = (
            joined
            or unicodedata.category(character) in ("Mn", "Me", "Cf")
            or "\u1160" <= character <= "\u11ff"  # vowels and ends of Hangul syllables
            or (before == 2 and "\U0001f3fb" <= character <= "\U0001f3ff")  # the skin of the emoji before
        )
        wide = unicodedata.east_asian_width(character) in ("W", "F")
        columns = 0 if none else 2 if wide else 1
        before, joined = columns or before, character == _JOINER
        yield character, columns


def width(text: str) -> int:
    """The columns that a line of text takes.

    >>> width("file"), width("文件"), width("e\u0301"), width("👩‍👩‍👧"), width("👍🏽")
    (4, 4, 1, 2, 2)
    """
    return sum(columns for _, columns in _places(text))


def cut(text: str, columns: int) -> str:
    """A line of text that takes at most so many columns; … stands for an end that is cut off.

    >>> cut("include", 5), cut("文件夹", 5), cut("file", 4)
    ('incl…', '文件…', 'file')
    """
    if width(text) <= columns:
        return text
    kept, taken = "", 0
    for character, more in _places(text):
        taken += more
        if taken > columns - 1:
            break
        kept += character
    return kept + "…" * (columns > 0)


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    r"""Rows of cells as lines with two spaces between the columns, every cell made printable.

    Args:
        rows: rows of equally many cells.
        right: the columns that are flush right.

    >>> aligned([["文", "1.5"], ["a\n", "22.0"]], right=[1])
    ['文    1.5', 'a\\n  22.0']
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        gaps = [" " * (w - width(cell)) for w, cell in zip(widths, row, strict=True)]
        placed = [gap + cell if i in right else cell + gap for i, (gap, cell) in enumerate(zip(gaps, row, strict=True))]
        lines.append("  ".join(placed).rstrip())
    return lines
