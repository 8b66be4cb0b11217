"""Code blocks and tables of the documents, for tests that compare them with the code."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(document: str, language: str = "python") -> list[str]:
    """The fenced blocks of a document in this language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / document).read_text(), flags=re.DOTALL)


def table(document: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column has this heading."""
    _, _, rest = (DOCS / document).read_text().partition(f"| {heading} |")
    assert rest, f"{document} has no table of {heading!r}"
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
