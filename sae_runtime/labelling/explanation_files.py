"""Files of explanations, known by what they hold and not by their names.

| what | from |
|---|---|
| lines of JSON, or JSON; a folder of such files, or of `explanations/` with them | Neuronpedia's dumps and API |
| a folder of `{module}_latent{number}.txt`, or of `explanations/` with them | delphi |
| a table with commas, semicolons or tabs | people |
| a bundle or a store | its `labels.jsonl` |

All of them may be compressed by gzip.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.parts import MANIFEST
from sae_runtime.bundle.regular import open_regular
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.labelling.explanations import FEATURE, TEXT, Explanation, explanation, records
from sae_runtime.store.schema import STORE

_LINE = 1 << 22  # bytes of a line; Neuronpedia's have an embedding of hundreds of numbers
_WHOLE = 1 << 29  # bytes of a file of JSON that is not lines, or of a table
_DELPHI = re.compile(r"(?P<module>.*)_latent(?P<feature>[0-9]{1,18})\.txt")
_JSON = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
_NOTHING = ("Explanation could not be parsed.", "No explanation found")  # what delphi writes where it has none
_INSIDE = "explanations"


def tool_of(path: Path) -> str:
    """What the explanations of a path come from: neuronpedia, delphi, or the file's name.

    >>> tool_of(Path("labels.csv"))
    'labels.csv'
    """
    if not path.is_dir() or any((path / name).is_file() for name in (MANIFEST, STORE)):
        return path.name
    return "delphi" if any(_DELPHI.fullmatch(file.name) for file in _folder(path).iterdir()) else "neuronpedia"


def read_explanations(path: Path) -> Iterator[Explanation | None]:
    r"""The explanations of a file or folder, in its order; None for a record that has no feature or no text.

    Raises:
        OSError: it does not exist or may not be read.
        ValueError: it is none of these files, or is damaged; the message names the line.

    >>> _ = Path("a.csv").write_text("feature,label\n3,files\n4,\n")
    >>> [found and (found.feature, found.text) for found in read_explanations(Path("a.csv"))]
    [(3, 'files'), None]
    """
    if any((path / name).is_file() for name in (MANIFEST, STORE)):
        if not (path / LABELS).is_file():
            raise ValueError(f"{path} has no {LABELS}, so its features have no labels that people gave or imported")
        path = path / LABELS
    if not path.is_dir():
        yield from _file(path)
        return
    folder = _folder(path)
    files = sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=_natural)
    delphi = [file for file in files if _DELPHI.fullmatch(file.name)]
    others = [file for file in files if file.name.lower().endswith(_JSON)]
    if not delphi and not others:
        raise ValueError(
            f"{path} holds no explanations: neither MODULE_latentNUMBER.txt of delphi nor batch-NUMBER.jsonl.gz of "
            "Neuronpedia; name a file, or the folder of such files"
        )
    for file in delphi or others:
        refuse_link_out(file, folder)
        yield from [_of_delphi(file)] if delphi else _file(file)


def _folder(path: Path) -> Path:
    """The folder itself, or the one inside it that other tools put explanations in."""
    return path / _INSIDE if (path / _INSIDE).is_dir() else path


def _natural(path: Path) -> list[Any]:
    """Sorts batch-2 before batch-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _of_delphi(file: Path) -> Explanation | None:
    name = _DELPHI.fullmatch(file.name)
    assert name is not None
    with _stream(file) as stream:
        content = _all(stream, file, _LINE)
    text = content.decode() if not content.lstrip().startswith((b'"', b"null")) else read_json(Any, content, str(file))
    if text is None or text in ("", *_NOTHING):
        return None
    return Explanation(feature=int(name["feature"]), text=str(text), place=name["module"])


def _file(path: Path) -> Iterator[Explanation | None]:
    with _stream(path) as stream:
        filled = (line for line in _lines(stream, path) if line.strip())
        first = next(filled, b"").removeprefix(b"\xef\xbb\xbf").lstrip()
        if not first:
            raise ValueError(f"{path} is empty; name a file of explanations")
        form = "table" if first[:1] not in (b"{", b"[") else "lines"
        if form == "lines" and (not _is_object(first) or next(filled, None) is None):
            form = "whole"
        stream.seek(0)
        if form == "lines":
            for number, line in enumerate(_lines(stream, path), start=1):
                if line.strip():
                    where = f"line {number} of {path}"
                    for record in records(read_json(Any, line, where, foreign=True), where):
                        yield explanation(record, where)
            return
        content = _all(stream, path, _WHOLE)
        if form == "table":
            yield from _table(content, path)
            return
        for place, record in enumerate(records(read_json(Any, content, str(path), foreign=True), str(path))):
            yield explanation(record, f"record {place} of {path}")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(read_json(Any, line, "a line", foreign=True), dict)
    except ValueError:
        return False


def _table(content: bytes, path: Path) -> Iterator[Explanation | None]:
    """A table whose first row names its columns, or of a number and a text."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    header = text.partition("\n")[0]
    separator = max("\t,;", key=header.count)
    csv.field_size_limit(max(csv.field_size_limit(), _LINE))  # one number for the whole process
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(rows)]
        if names[0].isdigit() and len(names) == 2:  # no names, but the first row
            names, rows = ["feature", "label"], iter([names, *rows])  # type: ignore[assignment]
        lower = {name.lower(): name for name in (*FEATURE, *TEXT, "score", "source", "modelId", "explainer")}
        known = [lower.get(name.lower(), name) for name in names]
        if not set(known) & set(FEATURE) or not set(known) & set(TEXT):
            raise ValueError(
                f"{path} has the columns {', '.join(names)[:200]}; expected one of {', '.join(FEATURE)} and one of "
                f"{', '.join(TEXT)}: name the columns so"
            )
        for number, row in enumerate(rows, start=1):
            if row:
                record = dict(zip(known, (cell.strip() for cell in row), strict=False))
                yield explanation(record, f"row {number} of {path}")
    except csv.Error as error:
        raise ValueError(f"{path} is not a sound table ({error}); save it again as CSV") from error


@contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, without the compression that it may have."""
    with open_regular(path) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file) if compressed else file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path} is not sound gzip ({error}); get the file again") from error


def _lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a file; a first one without end is the beginning of a file that has no lines."""
    number = 0
    while line := stream.readline(_LINE + 1):
        number += 1
        if len(line) > _LINE and number > 1:
            raise ValueError(f"line {number} of {path} has more than {_LINE:,} bytes; get a sound file")
        yield line


def _all(stream: BinaryIO, path: Path, most: int) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes; give its explanations as lines of JSON")
    return content
