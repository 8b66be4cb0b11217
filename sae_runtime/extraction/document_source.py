"""Documents of files as the source of an extraction: windows, rows and columns, whatever reads the windows."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.activations.documents import Document, files_of
from sae_runtime.activations.reading import Reading
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.parts import record
from sae_runtime.core.features import Features
from sae_runtime.extraction.column_kinds import whole
from sae_runtime.extraction.document_parts import DocumentParts
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.text.tokenizer import Tokenizer
from sae_runtime.text.tokens import Tokens, window_size, windows_of

PART = 1 << 18  # characters of a part: about 60,000 tokens, so that batches have little padding
CONTEXT = 128  # tokens of a window, as in harvest
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


Read = Callable[[Sequence[Tokens], Sequence[object]], Features]
"""Gives the features of the tokens of windows, one after the other: (windows, the name of each one's document)."""


class DocumentSource(ABC):
    """Documents of files, whose tokens something reads in windows.

    Args:
        texts: files and folders, as `activations.documents` reads them.
        longest: the most tokens of a window that the reader takes, special ones included.
        reading: where the documents are in the files, and which columns are kept.
        context: largest number of tokens of a window, special ones included; None: 128, or `longest` if it is less.
        special: whether special tokens have rows.
        licence: of the texts, to be kept beside each. A column `licence` of the files may be kept instead.
        keep_text: whether texts are kept.
        part: characters from which on a part ends.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a setting cannot be used, or the texts are standard input.
    """

    def __init__(
        self,
        texts: Sequence[Path],
        longest: int,
        *,
        reading: Reading | None = None,
        context: int | None = None,
        special: bool = False,
        licence: str | None = None,
        keep_text: bool = True,
        part: int = PART,
    ) -> None:
        if licence is not None and reading is not None and "licence" in reading.columns:
            raise ValueError(
                f"a licence of all texts ({licence}) and the column 'licence' exclude one another; give one"
            )
        self.documents, self.special = DocumentParts(texts, reading or Reading(), part), special
        self.licence, self.keep_text = licence, keep_text
        self.context = window_size(min(CONTEXT, longest) if context is None else context, longest)

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of the texts."""

    @abstractmethod
    def read(self, windows: Sequence[Tokens], names: Sequence[object]) -> Features:
        """The features of the tokens of windows, one window after the other, by the served rule.

        Args:
            windows: of documents.
            names: of the document of each window, for messages.
        """

    @abstractmethod
    def _origin(self) -> dict[str, Any]:
        """The facts of the model and its SAE that decide the rows."""

    def plan(self) -> Plan:
        """As Source."""
        parts, kinds = self.documents.plan()
        kinds = {name: "string" if name == "licence" else kind for name, kind in kinds.items()}
        settings = {
            "columns": kinds,
            "context": self.context,
            "special": self.special,
            "licence": self.licence,
            "keep_text": self.keep_text,
            "part": self.documents.size,
            "documents": sum(part.documents for part in parts),
        }
        return Plan({**self._origin(), **self._input(), **settings}, tuple(parts))

    def rows(self, part: Part, read: Read | None = None) -> PartRows:
        """As Source; `read` gives the features of the windows, None: those by the served rule."""
        found = self.documents.read(part)
        cut = [self._windows(tokens) for tokens in self._tokens(found)]
        windows = [window for own in cut for window in own]
        names = [document.source for document, own in zip(found, cut, strict=True) for _ in own]
        features = (read or self.read)(windows, names)
        numbers = np.arange(part.first, part.first + len(found), dtype=np.int32)
        doc = np.repeat(numbers, [sum(map(len, own)) for own in cut])

        def joined(name: str) -> Any:
            return np.concatenate([getattr(w, name) for w in windows]) if windows else np.zeros(0, np.int64)

        own = joined("kept").astype(np.bool_)
        offsets = joined("offsets").reshape(-1, 2).astype(np.int32)
        columns = {"doc": doc, "pos": joined("positions").astype(np.int32), "token": joined("ids").astype(np.int32)}
        if self.documents.reading.ids_field is None:
            columns |= {"begin": offsets[:, 0], "end": offsets[:, 1]}
        if not self.special:
            kept = np.flatnonzero(own)
            features, own = features.take(kept), own[kept]
            columns = {name: array[kept] for name, array in columns.items()}
        return PartRows(features, own=own, documents=self._columns(part, found), **columns)

    def vocabulary(self) -> list[str | None]:
        """As Source."""
        tokenizer = self.tokenizer
        return [tokenizer.token(number) for number in range(tokenizer.size)]

    def _tokens(self, found: Sequence[Document]) -> list[Tokens]:
        """The tokens of documents; of ids, those that the tokenizer would have around them."""
        if self.documents.reading.ids_field is None:
            return self.tokenizer.encode([str(document.content) for document in found])
        made = []
        for document in found:
            try:
                made.append(self.tokenizer.given(np.asarray(document.content)))
            except ValueError as error:
                raise ValueError(f"{document.source}: {error}") from error
        return made

    def _windows(self, tokens: Tokens) -> list[Tokens]:
        """As harvest cuts them: a text without tokens of its own has none."""
        return [] if tokens.special.all() else list(windows_of(tokens, self.context))

    def _columns(self, part: Part, found: Sequence[Document]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "doc": np.arange(part.first, part.first + part.documents, dtype=np.int32),
            "file": [whole(document.source.file) for document in found],
            "row": [document.source.row for document in found],
            "id": [document.source.id for document in found],
        }
        for number, name in enumerate(self.documents.reading.columns):
            columns[name] = [document.columns[number] for document in found]
        if self.licence is not None:
            columns["licence"] = [self.licence] * len(found)
        if self.keep_text and self.documents.reading.ids_field is None:
            columns["text"] = [document.content for document in found]
        return columns

    def _input(self) -> dict[str, Any]:
        """The facts of the files and of how they are read."""
        reading = self.documents.reading
        files = [file for path in self.documents.texts for file in files_of(path)]
        return {
            "source": {"files": [{"file": whole(str(file)), **dataclasses.asdict(record(file))} for file in files]},
            "document": reading.document,
            "text_field": reading.text_field,
            "ids_field": reading.ids_field,
            "id_field": reading.id_field,
        }


def facts_of_sae(name: str, hook: str | None, d_sae: int, manifest: Manifest | None) -> dict[str, Any]:
    """What features say of the SAE that they are of; `manifest` is that of its bundle, None: there is none."""
    return {
        "hook": hook,
        "sae": name,
        "d_sae": d_sae,
        "architecture": manifest and dataclasses.asdict(manifest.architecture),
        "allocation": manifest and manifest.allocation and dataclasses.asdict(manifest.allocation),
    }


def facts_of_tokenizer(home: Path) -> dict[str, str]:
    """The sha256 of each file of a folder that decides its tokens, by the file's name."""
    return {name: record(home / name).sha256 for name in _TOKENIZER if (home / name).is_file()}
