"""The addresses outside of the documents, with how often they are linked to: `make docs-links`."""

import collections
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def addresses(markdown: str) -> list[str]:
    """The addresses that a page links to, outside of its blocks and of code.

    >>> addresses("[a](https://a.org/b_c) <https://d.org>, `<https://e.org>`, <http://127.0.0.1:8080>")
    ['https://a.org/b_c', 'https://d.org']
    """
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?:\]\(|<)(https?://(?!127\.0\.0\.1)[^\s)>]+)", prose)


if __name__ == "__main__":
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    counted = collections.Counter(address for page in pages for address in addresses(page.read_text()))
    for address, count in sorted(counted.items()):
        print(f"{count:4} {address}")  # noqa: T201
    print(f"{len(counted)} addresses; whether they answer: lychee --exclude-loopback *.md docs (needs the network)")  # noqa: T201
