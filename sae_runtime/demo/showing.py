"""What the demo prints, and its page."""

from collections.abc import Mapping, Sequence

import click

from sae_runtime.browser import page
from sae_runtime.demo.lines import Lists, markup, printed

Rows = list[tuple[str, ...]]


def show(header: Sequence[str], rows: Rows, sections: Mapping[str, Lists]) -> None:
    """Print the table of the SAEs, if there are some, and the sections."""
    if rows:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            click.echo("  ".join(map(str.rjust, row, widths)))
    for title, lists in sections.items():
        click.echo("\n\n".join(["", title, *(printed(*one) for one in lists)]))


def html(
    header: Sequence[str], rows: Rows, sections: Mapping[str, Lists], pictures: Sequence[str], made: str, opening: str
) -> str:
    """The demo's page.

    Args:
        header: of the table of the SAEs.
        rows: of the table.
        sections: titles and their lists.
        pictures: as SVG.
        made: what was done, in a sentence.
        opening: the command that opens the site.
    """
    table = [
        page.paragraph(made),
        page.table(header, rows),
        page.paragraph(
            "FVU: fraction of variance unexplained on held-out text. Batch rule: a batch shares its matches, as in "
            "training. Served: each token for itself, by the calibrated threshold.",
            dim=True,
        ),
    ]
    browse = [
        page.paragraph("A site shows every feature with its texts, and the model runs in the page, to be steered:"),
        page.code(opening),
    ]
    parts = [page.section("", table), page.section("Look at all of it", browse)]
    parts += [page.section(title, [page.columns([markup(*one) for one in lists])]) for title, lists in sections.items()]
    parts.append(page.section("Pictures", [page.columns(pictures)]))
    return page.page("sae-runtime demo", parts)
