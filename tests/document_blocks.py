"""The fenced blocks of a document, with where they stand, what marks them, and what they are said to print.

`test_documents.py` checks all blocks without running them; `walked_pages.walk` runs those of one page.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("bash", "console", "python", "text", "toml", "json", "yaml")
RUN = ("bash", "console", "python")
SERVER = "in another terminal"
NOT_RUN = (
    "needs a GPU",
    "needs the Hub",
    "needs a cluster",
    "needs Docker",
    "needs vLLM",
    "needs an account",
    "needs another server",
)
MARKS = (SERVER, *NOT_RUN)
# Lines of the shell that are checked and not run: they install, build for long, or measure for hours.
LEFT_OUT = re.compile(
    r"\s*(?:\w+=\S* +)*"  # variables of one command
    r"(?:[\w./-]*python3? (?:-m (?:pip|pytest|build)\b|\S*benchmarks/)|[\w./-]*pip3? (?:un)?install"
    r"|make [\w-]|.*&& make [\w-])"
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: `line` is the line of the page on which its first line stands, counted from 1."""

    page: str
    line: int
    language: str
    text: str
    headings: tuple[str, ...]  # of the sections around it, the outermost first
    printed: str | None = None  # the ```text right after it

    @property
    def mark(self) -> str | None:
        """What its first line says of how it runs, such as "needs a GPU"; None if it says nothing."""
        found = re.match(r"#\s*(in another terminal|needs [^\n:,.]*)", self.text)
        return found[1].strip() if found and self.language in RUN else None

    @property
    def file(self) -> str | None:
        """The name of the file that a reader writes this text to: a first line such as `# settings.toml`."""
        found = re.match(r"# ([\w./-]+\.(?:toml|json|yaml))\n", self.text)
        return found[1] if found and self.language in ("toml", "yaml") else None

    @property
    def place(self) -> str:
        """Page and line, as editors open them."""
        return f"{self.page}:{self.line}"


def blocks_of(page: str, markdown: str | None = None) -> list[Block]:
    """The blocks of a page in their order; `page` is a path below the root of the project, such as "README.md".

    Examples:
        >>> markdown = "# One" + chr(10) + "```bash" + chr(10) + "ls" + chr(10) + "```"
        >>> blocks_of("page.md", markdown)
        [Block(page='page.md', line=3, language='bash', text='ls\\n', headings=('One',), printed=None)]
    """
    lines = ((ROOT / page).read_text() if markdown is None else markdown).splitlines()
    found: list[Block] = []
    sections: list[tuple[int, str]] = []
    number, after = 0, False  # `after`: only blank lines stand between the last block and here
    while number < len(lines):
        line = lines[number]
        number += 1
        if fence := re.match(r"(\s*)(`{3,})(.*)$", line):
            first, indent = number, len(fence[1])
            while number < len(lines) and lines[number].strip() != fence[2]:
                number += 1
            if number == len(lines):
                raise ValueError(f"{page}:{first}: a fence is not closed")
            text = "".join(row[indent:] + "\n" for row in lines[first:number])
            number += 1
            block = Block(page, first + 1, fence[3].strip(), text, tuple(title for _, title in sections))
            if block.language == "text" and after and found[-1].language in RUN:
                found[-1] = dataclasses.replace(found[-1], printed=text)
            found.append(block)
            after = True
        elif line.strip():
            after = False
            if heading := re.match(r"(#+) (.+)$", line):
                sections = [one for one in sections if one[0] < len(heading[1])] + [(len(heading[1]), heading[2])]
    return found


def session(block: Block) -> Iterator[tuple[int, str, str]]:
    """The commands of a ```console block: the line of the page, the command, and what is printed after it."""
    rows = list(enumerate(block.text.splitlines(), block.line))
    if rows and not rows[0][1].startswith("$ "):
        raise ValueError(f"{block.place}: a session begins with a line of `$ ` and a command")
    while rows:
        first, command = rows.pop(0)
        while command.endswith("\\") and rows:
            command += "\n" + rows.pop(0)[1]
        printed = []
        while rows and not rows[0][1].startswith("$ "):
            printed.append(rows.pop(0)[1])
        yield first, command[2:], "".join(row + "\n" for row in printed)


def shell(block: Block) -> str:
    """The lines of the shell in a block: of a session its commands, of any other language nothing."""
    if block.language == "console":
        return "".join(command + "\n" for _, command, _ in session(block))
    return block.text if block.language == "bash" else ""


def logical_lines(text: str) -> Iterator[tuple[int, int, str]]:
    """Lines of the shell with continued ones joined: the first and the last line, from 0, and the text."""
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        first, joined = number, rows[number]
        while joined.endswith("\\") and number + 1 < len(rows):
            number += 1
            joined = joined[:-1] + rows[number].lstrip()
        yield first, number, joined
        number += 1


def runnable(text: str) -> str:
    """The lines of the shell without those that are only checked; every line keeps its number."""
    rows = text.splitlines()
    for first, last, joined in logical_lines(text):
        if LEFT_OUT.match(joined):
            rows[first : last + 1] = [":", *[""] * (last - first)]
    return "".join(row + "\n" for row in rows)


def runs(block: Block) -> bool:
    """Whether a walk has something to run in this block."""
    if block.language not in RUN or block.mark in NOT_RUN:
        return False
    if block.language == "python":
        return True
    return any(
        row.strip() not in ("", ":") and not row.lstrip().startswith("#") for row in runnable(shell(block)).splitlines()
    )
