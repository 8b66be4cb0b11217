"""A corpus for benchmarks: docstrings of the installed packages, and Debian's documentation, with source and licence.

Docstrings are found by `ast`, so that no package is imported. Debian's documentation is what stands in /usr/share/doc,
and in the packages that --deb names, which `apt-get download` brings. The licence is what a package says of itself.

Half of the characters are of each source. Files are taken in the order of the hash of their name, and documents are
written in that of their text. So the same packages give the same corpus, and a smaller one is a part of a larger one.
"""

import ast
import gzip
import hashlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import click

DEBS = ("debian-reference-en", "debian-handbook", "python3.11-doc", "debian-policy", "developers-reference")
DOCS = Path("/usr/share/doc")
SHORTEST = 80  # characters of a document
LONGEST = 200_000
_NOT_PROSE = re.compile(r"copyright|changelog|buildinfo|searchindex|genindex|\.(js|css|svg|png|gif|jpe?g|inv|json)")
_SKIPPED_TAGS = {"script", "style", "head", "nav"}


class Text(NamedTuple):
    """A document of the corpus."""

    text: str
    source: str
    licence: str


def docstrings() -> Iterator[Text]:
    """The docstrings of all installed packages."""
    packages = {one.name.lower(): one for one in importlib.metadata.distributions()}
    files = {str(file): (file, one) for one in packages.values() for file in one.files or [] if file.suffix == ".py"}
    for name in sorted(files, key=_hash):
        file, package = files[name]
        licence = _licence_of_package(package)
        yield from (Text(text, f"{name}:{of}", licence) for of, text in docstrings_of(Path(str(file.locate()))))


def _licence_of_package(package: importlib.metadata.Distribution) -> str:
    about = package.metadata
    classified = [one.rpartition(" :: ")[2] for one in about.get_all("Classifier") or [] if one.startswith("License")]
    lines = (about["License-Expression"] or about["License"] or ", ".join(classified) or "unknown").strip().splitlines()
    return lines[0][:100] if lines else "unknown"


def docstrings_of(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a Python file that are worth reading, each with the name of what it describes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return  # a template, or a test of a parser
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield getattr(node, "name", "module"), inspect.cleandoc(text)


def debian(folders: Iterable[Path]) -> Iterator[Text]:
    """The documentation below folders such as /usr/share/doc, which have one folder for each package."""
    pages = {
        str(path.relative_to(folder)): path
        for folder in folders
        for path in folder.glob("*/**/*")
        if path.is_file() and not path.is_symlink() and not _NOT_PROSE.search(path.name.lower())
    }
    for name in sorted(pages, key=_hash):
        if text := _page(pages[name]):
            package = pages[name].parents[name.count("/") - 1]
            yield Text(text, f"debian:{name}", _licence_of_debian(package / "copyright"))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _licence_of_debian(copyright: Path) -> str:
    if not copyright.is_file():
        return "unknown"
    said = re.findall(r"^License: *(\S.*)$", copyright.read_text(errors="replace"), re.MULTILINE)
    return ", ".join(dict.fromkeys(said))[:100] or f"see {copyright.parent.name}/copyright"


def _page(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError):
            return ""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return ""
    if "\0" in text:
        return ""
    if ".htm" in path.name or text[:200].lstrip().lower().startswith(("<!doctype html", "<html")):
        page = _Prose()
        page.feed(text)
        text = "".join(page.parts)
        text = re.sub(r"[ \t\r\f\v]+", " ", text)
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


class _Prose(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipped += tag in _SKIPPED_TAGS

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in _SKIPPED_TAGS and self._skipped > 0

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data)


def downloaded(names: Iterable[str], folder: Path) -> Path:
    """Debian packages, unpacked below a folder; gives their /usr/share/doc."""
    (folder / DOCS.relative_to("/")).mkdir(parents=True)
    for name in names:
        subprocess.run(["apt-get", "download", "-qq", name], cwd=folder, check=True, stdin=subprocess.DEVNULL)
    for file in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", file, folder], check=True)
    return folder / DOCS.relative_to("/")


def gathered(sources: Iterable[Iterable[Text]], characters: int) -> list[Text]:
    """Documents that differ, an equal share of the characters of each source, ordered by the hash of their text."""
    found: dict[bytes, Text] = {}
    sources = list(sources)
    for source in sources:
        left = characters // len(sources)
        for one in source:
            if left <= 0:
                break
            if SHORTEST <= len(one.text) <= LONGEST and "\0" not in one.text:
                with suppress(UnicodeEncodeError):  # half of a character
                    if found.setdefault(_hash(one.text), one) is one:
                        left -= len(one.text)
    return [one for _, one in sorted(found.items())]


def write(path: Path, texts: list[Text]) -> None:
    """Columns text, source and licence, as lines of JSON or as Parquet by the file's suffix."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {name: [getattr(one, name) for one in texts] for name in Text._fields}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd", row_group_size=2_000)
    else:
        path.write_text("".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in texts))


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--characters", default=6_000_000, help="About four are a token.")
@click.option("--deb", multiple=True, default=DEBS, show_default=True, help="A package to download; '' for none.")
def main(out: Path, characters: int, deb: tuple[str, ...]) -> None:
    """Write the corpus to OUT, a .jsonl or .parquet file."""
    with tempfile.TemporaryDirectory() as home:
        folder = downloaded([name for name in deb if name], Path(home))
        texts = gathered([docstrings(), debian([DOCS, folder])], characters)
    write(out, texts)
    of_debian = sum(len(one.text) for one in texts if one.source.startswith("debian:"))
    total = sum(len(one.text) for one in texts)
    print(f"{out}: {len(texts):,} documents, {total:,} characters, {of_debian / max(total, 1):.0%} of Debian's")


if __name__ == "__main__":
    main()
