"""Documents of files in parts: where each begins, by the content alone, and the documents of one, read again."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from sae_runtime.activations.documents import Document, Place, documents
from sae_runtime.activations.reading import STDIN, Entry, Reading
from sae_runtime.extraction.column_kinds import Kind
from sae_runtime.extraction.plan import Part

_OF_AN_ID = 4  # characters for which a token id counts
_COLUMNS = ("doc", "file", "row", "id", "tokens", "text", "indices", "values")


class DocumentParts:
    r"""Documents of files, in parts of consecutive ones.

    Args:
        texts: files and folders, as `activations.documents` reads them.
        reading: where the documents are in the files, and which columns are kept.
        size: characters from which on a part ends.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file or a setting cannot be used, or the texts are standard input.

    >>> _ = Path("a.txt").write_text("One.\n\nTwo.\n\nThree.")
    >>> documents = DocumentParts([Path("a.txt")], Reading(), size=8)
    >>> parts, kinds = documents.plan()
    >>> [[one.content for one in documents.read(part)] for part in parts]
    [['One.', 'Two.'], ['Three.']]
    """

    def __init__(self, texts: Sequence[Path], reading: Reading, size: int) -> None:
        self.texts, self.reading, self.size = tuple(texts), reading, size
        if STDIN in self.texts:
            raise ValueError(
                "- is standard input, which cannot be read again when an extraction goes on; write it to a file"
            )
        kept = self.reading.columns
        if taken := [name for name in kept if name in _COLUMNS or kept.count(name) > 1]:
            hint = "give it as --id-field" if taken[0] == "id" else "rename it"
            raise ValueError(
                f"{taken[0]!r} cannot be a column that is kept, since features have a column of this name; {hint}"
            )
        documents(self.texts, self.reading)  # which refuses what cannot be read
        self._home = Path.cwd()
        self._next: tuple[int, Iterator[Document]] | None = None  # the part behind the last one, ready to be read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_next": None}

    def plan(self) -> tuple[list[Part], dict[str, str]]:
        """The parts, and the kind of each column that is kept; it reads all of the input.

        Raises:
            ValueError: there is no text.
        """
        parts: list[Part] = []
        kinds = {name: Kind() for name in self._names}
        stream, first = self._from(Place()), 0
        while found := self._until_full(stream):
            file, (row, byte) = found[0].place
            at = Part(number=len(parts), first=first, documents=len(found), sha256=_sha256(found), file=file)
            parts.append(replace(at, row=row, byte=byte))
            first += len(found)
            for document in found:
                for kind, value in zip(kinds.values(), self._values(document), strict=True):
                    kind.see(value)
        if not parts:
            raise ValueError(f"{', '.join(map(str, self.texts))} holds no text; name files that hold some")
        return parts, {name: kind.name for name, kind in kinds.items()}

    def read(self, part: Part) -> list[Document]:
        """The documents of a part.

        Raises:
            ValueError: they changed since the plan was made.
        """
        if self._next is None or self._next[0] != part.number:
            start = Place(part.file, Entry(part.row, part.byte))
            self._next = part.number, self._from(start)
        stream = self._next[1]
        self._next = None
        found = list(islice(stream, part.documents))
        if _sha256(found) != part.sha256:
            where = f"from {found[0].source} on" if found else f"{part.documents} documents"
            raise ValueError(
                f"the texts of part {part.number} ({where}) changed since the plan was made; extract into another "
                "folder, or with --force"
            )
        self._next = part.number + 1, stream
        return found

    def _until_full(self, stream: Iterator[Document]) -> list[Document]:
        """The next documents, as many as a part has."""
        found, size = list[Document](), 0
        for document in stream:
            found.append(document)
            size += len(document) * (1 if isinstance(document.content, str) else _OF_AN_ID)
            if size >= self.size:
                break
        return found

    @property
    def _names(self) -> tuple[str, ...]:
        """Columns of the input, with the names of documents."""
        return ("id", *self.reading.columns) if self.reading.id_field else self.reading.columns

    def _values(self, document: Document) -> tuple[Any, ...]:
        return (document.source.id, *document.columns) if self.reading.id_field else document.columns

    def _from(self, start: Place) -> Iterator[Document]:
        """The documents from a place on, with files named as they were given, whatever this process' folder is."""
        if Path.cwd() == self._home:
            yield from documents(self.texts, self.reading, start=start)
            return
        home, absolute = f"{self._home}{os.sep}", [path for path in self.texts if path.is_absolute()]
        for one in documents([self._home / path for path in self.texts], self.reading, start=start):
            file = one.source.file
            if not any(Path(file).is_relative_to(path) for path in absolute):
                file = file.removeprefix(home)
            yield replace(one, source=replace(one.source, file=file))


def _sha256(found: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in found:
        digest.update(_content(document))
    return digest.hexdigest()


def _content(document: Document) -> bytes:
    """What decides the rows of a document, as bytes."""
    source, content = document.source, document.content
    body = content.encode() if isinstance(content, str) else content.tobytes()
    head = json.dumps([len(body), source.file, source.row, source.id, document.columns], default=str)
    return head.encode() + body
