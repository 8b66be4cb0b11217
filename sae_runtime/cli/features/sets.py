"""Two sets of texts on the command line: two lists of files, two columns of a table, or two values of a column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common, texts
from sae_runtime.cli.options import Decorator, gathered

_HINT = (
    "Give two sets of texts: --about FILE and --against FILE; or --table FILE with --about-column and "
    "--against-column; or --table FILE with --label-column and --about-value."
)
Sets = tuple[list[str], list[str]]


def _sets(
    about: Sequence[Path],
    against: Sequence[Path],
    table: Sequence[Path],
    about_column: str | None,
    against_column: str | None,
    label_column: str | None,
    about_value: str | None,
    against_value: str | None,
    document: str,
    text_field: str,
) -> Sets:
    """The texts of both sets; what is given says in which of the three ways."""
    ways = {
        "files": (*about, *against),
        "columns": (about_column, against_column),
        "values": (label_column, about_value, against_value),
    }
    for path in table:
        _check_columns(path)
    match [way for way, given in ways.items() if any(one is not None for one in given)]:
        case ["files"] if about and against and not table:
            return _contents(about, document, text_field), _contents(against, document, text_field)
        case ["columns"] if table and about_column is not None and against_column is not None:
            return _contents(table, document, about_column), _contents(table, document, against_column)
        case ["values"] if table and label_column is not None and about_value is not None:
            return _by_value(table, document, text_field, label_column, about_value, against_value)
    raise click.UsageError(_HINT)


def _check_columns(table: Path) -> None:
    """Refuse plain text as a table."""
    from sae_runtime.activations.documents import files_of
    from sae_runtime.activations.reading import TEXTS, kind

    for file in files_of(table):
        if kind(file) in TEXTS:
            raise ValueError(f"{file} is plain text and has no columns; give a .csv or .jsonl file, or --about FILE")


def _contents(files: Sequence[Path], document: str, text_field: str) -> list[str]:
    return [str(one.content) for one in texts.read(files, document, text_field)]


def _by_value(
    files: Sequence[Path], document: str, text_field: str, column: str, about: str, against: str | None
) -> Sets:
    """The texts of the rows with one value, and those with another, or with any other."""
    if about == against:
        raise ValueError(f"--about-value and --against-value are both {about!r}; two sets need two values")
    rows = [(one.source.id, str(one.content)) for one in texts.read(files, document, text_field, column)]
    labelled = [(str(value), text) for value, text in rows if value is not None]
    values = list(dict.fromkeys(value for value, _ in labelled))
    for value in (about, *([] if against is None else [against])):
        if value not in values:
            known = (
                f"it has {', '.join(map(repr, values[:10]))}{', ...' * (len(values) > 10)}" if values else "none is set"
            )
            raise ValueError(f"no text has {value!r} in the column {column!r}; {known}")
    others = [text for value, text in labelled if (value == against if against is not None else value != about)]
    if not others:
        raise ValueError(f"every text has {about!r} in the column {column!r}; two sets need two values")
    return [text for value, text in labelled if value == about], others


def _files(name: str, help: str) -> Decorator[Any]:
    return click.option(name, multiple=True, type=common.PATH, help=help)


sets = gathered(
    "sets",
    _sets,
    {
        "about": _files("--about", f"texts that features should be about: {texts.FILES}"),
        "against": _files("--against", "texts to tell them from"),
        "table": _files("--table", "file with fields that holds both sets: .csv, .jsonl, ..."),
        "about_column": click.option("--about-column", help="field or column of --table with texts of the first set"),
        "against_column": click.option("--against-column", help="field or column with texts of the second set"),
        "label_column": click.option(
            "--label-column", help="field or column of --table that says what a text is about"
        ),
        "about_value": click.option("--about-value", help="what --label-column holds for the first set"),
        "against_value": click.option("--against-value", help="what it holds for the second set [anything else]"),
        "document": texts.document,
        "text_field": texts.text_field,
    },
)
"""Gives a command these options, and hands it the texts of both sets."""
