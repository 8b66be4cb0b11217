"""Texts as the source of an extraction: a deployed model's tokenizer and graph turn their documents into rows."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.activations.documents import Document, files_of
from sae_runtime.activations.reading import Reading
from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.parts import read_manifest, record
from sae_runtime.core.features import Features, concatenate
from sae_runtime.deployed.reading_features import Lowered
from sae_runtime.extraction.column_kinds import whole
from sae_runtime.extraction.document_parts import DocumentParts
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.model import Model, load_model
from sae_runtime.text.tokens import Tokens, windows_of

PART = 1 << 18  # characters of a part: about 60,000 tokens, so that batches have little padding
CONTEXT = 128  # tokens of a window, as in harvest
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


Read = Callable[[Sequence[Tokens], Sequence[object]], Features]
"""Gives the features of the tokens of windows, one after the other: (windows, the name of each one's document)."""


class TextSource:
    """Documents of files, whose tokens a deployed model reads.

    Args:
        model: a deployed model, or its path.
        texts: files and folders, as `activations.documents` reads them.
        sae: the SAE; None: the model's only one.
        reading: where the documents are in the files, and which columns are kept.
        context: largest number of tokens of a window, special ones included; None: 128, or fewer where the model reads
            no more.
        special: whether special tokens have rows.
        licence: of the texts, to be kept beside each. A column `licence` of the files may be kept instead.
        keep_text: whether texts are kept.
        part: characters from which on a part ends.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model has no such SAE, a setting cannot be used, or the texts are standard input.
    """

    def __init__(
        self,
        model: Model | str | Path,
        texts: Sequence[Path],
        *,
        sae: str | None = None,
        reading: Reading | None = None,
        context: int | None = None,
        special: bool = False,
        licence: str | None = None,
        keep_text: bool = True,
        part: int = PART,
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        self.sae = self.model.reads(sae)
        if licence is not None and reading is not None and "licence" in reading.columns:
            raise ValueError(
                f"a licence of all texts ({licence}) and the column 'licence' exclude one another; give one"
            )
        self.documents, self.special = DocumentParts(texts, reading or Reading(), part), special
        self.licence, self.keep_text = licence, keep_text
        self.context = self.model.window(min(CONTEXT, self.model.window()) if context is None else context)

    def plan(self) -> Plan:
        """As Source."""
        parts, kinds = self.documents.plan()
        kinds = {name: "string" if name == "licence" else kind for name, kind in kinds.items()}
        return Plan(self._facts(kinds, sum(part.documents for part in parts)), tuple(parts))

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

    def read(self, windows: Sequence[Tokens], names: Sequence[object], lowered: Lowered | None = None) -> Features:
        """The features of the tokens of windows, one window after the other.

        Args:
            windows: of documents.
            names: of the document of each window, for messages.
            lowered: how features below the threshold are read.
        """
        sae = self.sae.name
        found = self.model.read([window.ids for window in windows], texts=names, sae=sae, lowered=lowered)
        return concatenate([one[sae] for one in found], self.sae.d_sae, (sum(map(len, windows)),))

    def vocabulary(self) -> list[str | None]:
        """As Source."""
        tokenizer = self.model.tokenizer
        return [tokenizer.token(number) for number in range(tokenizer.size)]

    def _tokens(self, found: Sequence[Document]) -> list[Tokens]:
        """The tokens of documents; of ids, those that the tokenizer would have around them."""
        tokenizer = self.model.tokenizer
        if self.documents.reading.ids_field is None:
            return tokenizer.encode([str(document.content) for document in found])
        made = []
        for document in found:
            try:
                made.append(tokenizer.given(np.asarray(document.content)))
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

    def _facts(self, columns: dict[str, str], number: int) -> dict[str, Any]:
        layout, reading = self.model.layout, self.documents.reading
        graph = layout.features or layout.graph
        manifest = read_manifest(self.sae.bundle) if self.sae.bundle is not None else None
        home = layout.graph.parent
        weights = {path.name: record(Path(path)).sha256 for path in sorted(check_external(graph))}
        tokenizer = {n: record(layout.home / n).sha256 for n in _TOKENIZER if (layout.home / n).is_file()}
        files = [file for path in self.documents.texts for file in files_of(path)]
        return {
            "model": (manifest and manifest.model) or home.resolve().name,
            "hook": self.sae.hook,
            "sae": self.sae.name,
            "d_sae": self.sae.d_sae,
            "architecture": manifest and dataclasses.asdict(manifest.architecture),
            "allocation": manifest and manifest.allocation and dataclasses.asdict(manifest.allocation),
            "weights_sha256": self.sae.spliced.weights,
            "graph_sha256": record(graph).sha256,
            "host_sha256": weights,
            "tokenizer_sha256": tokenizer,
            "source": {"files": [{"file": whole(str(file)), **dataclasses.asdict(record(file))} for file in files]},
            "document": reading.document,
            "text_field": reading.text_field,
            "ids_field": reading.ids_field,
            "id_field": reading.id_field,
            "columns": columns,
            "context": self.context,
            "special": self.special,
            "licence": self.licence,
            "keep_text": self.keep_text,
            "part": self.documents.size,
            "documents": number,
        }
