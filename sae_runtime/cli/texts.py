"""Texts on the command line: given as they are, or the documents of files; and how they are shown in a terminal."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.options import Decorator, gathered
from sae_runtime.core.columns import cut, width
from sae_runtime.core.printable import printable

if TYPE_CHECKING:
    from sae_runtime.activations.documents import Document

FILES = "lines of plain text, or documents of .jsonl, .csv, .parquet, ...; - is standard input"
model = click.argument("model")
sae = click.option("--sae", metavar="NAME", help="the SAE, where the model has several")
document = click.option(
    "--document",
    type=click.Choice(("line", "paragraph", "file")),
    default="line",
    help="what a text is in a file of plain text",
)
text_field = click.option(
    "--text-field", default="text", help="field or column that holds the text, where a file has fields"
)


def _texts(text: tuple[str, ...], text_file: tuple[Path, ...], document: str, text_field: str) -> list[str]:
    for one in text:
        try:
            one.encode()
        except UnicodeEncodeError:
            raise ValueError(f"--text {one!r} is not UTF-8; give it in a file of UTF-8 by --text-file") from None
    return [*text, *(str(one.content) for one in read(text_file, document, text_field))]


def texts(help: str) -> Decorator[Any]:
    """Decorator that gives a command --text and --text-file, and hands it the list `texts`."""
    return gathered(
        "texts",
        _texts,
        {
            "text": click.option("--text", multiple=True, help=f"{help}; may be repeated"),
            "text_file": click.option("--text-file", multiple=True, type=common.PATH, help=FILES),
            "document": document,
            "text_field": text_field,
        },
    )


def read(files: Sequence[Path], document: str, text_field: str, label_field: str | None = None) -> "list[Document]":
    """The documents of files, with the value of a field of labels as the id of each.

    Raises:
        ValueError: a file cannot be read, as `documents` says, or the files hold no text.
    """
    if not files:
        return []
    from sae_runtime.activations.documents import documents
    from sae_runtime.activations.reading import Reading

    found = list(documents(files, Reading(document=document, text_field=text_field, id_field=label_field)))
    if not found:
        raise ValueError(f"{', '.join(map(str, files))} holds no text; name a file that holds some")
    return found


def columns() -> int:
    """The columns of the terminal; 80 where there is none."""
    return max(shutil.get_terminal_size((80, 24)).columns, 40)


def one_line(text: str, columns: int) -> str:
    r"""A text on one line of at most so many columns, its blanks as single spaces.

    >>> one_line("Open the\nfile", 10)
    'Open the …'
    """
    return cut(printable(" ".join(text.split())), columns)


def title(text: str) -> str:
    r"""A text as one line of the terminal, above what is said of it.

    >>> title("Open\nthe file"), title("")
    ('Open the file', '(an empty text)')
    """
    return one_line(text, columns()) or "(an empty text)"


def shown_token(text: str) -> str:
    r"""A token's text as a cell: blanks at its ends are seen, since tokens differ by them.

    >>> shown_token(" file"), shown_token("\n"), shown_token("")
    ('·file', '\\n', '∅')
    """
    inside = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inside) if inside else 0
    return printable("·" * before + inside + "·" * after) or "∅"


def around(text: str, begin: int, end: int, columns: int) -> str:
    """The text around some of its characters, which stand in brackets, on one line of at most so many columns.

    >>> around("The archive can be extracted to a file on disk.", 34, 38, 30)
    '…xtracted to a [file] on disk.'
    """
    before, token, after = (
        printable(re.sub(r"\s+", " ", part)) for part in (text[:begin], text[begin:end], text[end:])
    )
    marked = f"[{token}]"
    room = max(columns - width(marked), 0)
    right = cut(after, max(room // 2, room - width(before)))
    left = before[::-1]
    left = cut(left, room - width(right))[::-1]
    return cut(left + marked + right, columns)
