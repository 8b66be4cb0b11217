"""Features of made-up texts as a source of `extract`, whose numbers a test knows: words are tokens, some not ASCII."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.manifest import Architecture
from sae_runtime.core.features import Features
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan

WORDS = ("the", "file", "is", "open", "café", "naïve", "数据", "x", "=", "import", "🙂", "read", "in", "a", "loop")


@dataclass
class Document:
    """A document of words, with the active features of each word."""

    words: list[str]
    features: list[dict[int, float]]
    id: Any
    licence: str | None = "MIT"

    @property
    def text(self) -> str:
        """The words with blanks between them."""
        return " ".join(self.words)

    def places(self) -> list[tuple[int, int]]:
        """First character of each word, and the one after its last."""
        places, begin = [], 0
        for word in self.words:
            places.append((begin, begin + len(word)))
            begin += len(word) + 1
        return places


@dataclass
class MadeSource:
    """Documents as a source, in parts of `per_part` documents."""

    documents: list[Document]
    d_sae: int
    per_part: int = 7
    keep_text: bool = True
    known: bool = True  # documents and tokens are
    facts: dict[str, Any] = field(default_factory=dict)

    def plan(self) -> Plan:
        """As Source."""
        starts = range(0, len(self.documents), self.per_part)
        sizes = [len(self.documents[start : start + self.per_part]) for start in starts]
        parts = [
            Part(number=i, first=s, documents=n, sha256="") for i, (s, n) in enumerate(zip(starts, sizes, strict=True))
        ]
        architecture = asdict(Architecture(d_in=24, d_sae=self.d_sae, selection="topk", k=6))
        facts = {"model": "made", "hook": "h.3", "sae": None, "d_sae": self.d_sae, "architecture": architecture}
        facts |= {"allocation": None, "weights_sha256": "0" * 64, "source": {}, "licence": None, "part": self.per_part}
        whole = all(isinstance(document.id, int) for document in self.documents)
        facts |= {
            "columns": {"id": "int64" if whole else "string"},
            "documents": len(self.documents) if self.known else None,
        }
        return Plan(facts | self.facts, tuple(parts))

    def rows(self, part: Part) -> PartRows:
        """As Source."""
        documents = self.documents[part.first : part.first + part.documents]
        of_token = [found for document in documents for found in document.features]
        counts = np.array([len(found) for found in of_token], np.int64)
        indices = np.array([i for found in of_token for i in sorted(found)], np.int32)
        values = np.array([found[i] for found in of_token for i in sorted(found)], np.float32)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        doc = np.repeat(np.arange(part.first, part.first + len(documents)), [len(d.words) for d in documents])
        places = np.array([place for d in documents for place in d.places()], np.int32).reshape(-1, 2)
        numbers = np.arange(part.first, part.first + len(documents), dtype=np.int32)
        columns: dict[str, Any] = {"doc": numbers, "file": ["data/a.jsonl"] * len(numbers), "row": numbers * 2 + 1}
        columns |= {"id": [d.id for d in documents], "licence": [d.licence for d in documents]}
        columns |= {"text": [d.text for d in documents]} if self.keep_text else {}
        return PartRows(
            Features(indptr, indices, values, self.d_sae, (len(of_token),)),
            doc=(doc if self.known else np.zeros(len(doc))).astype(np.int32),
            pos=np.concatenate([np.zeros(0), *(np.arange(len(d.words)) for d in documents)]).astype(np.int32),
            own=np.ones(len(doc), np.bool_),
            token=np.array([WORDS.index(w) for d in documents for w in d.words], np.int32) if self.known else None,
            begin=places[:, 0] if self.keep_text else None,
            end=places[:, 1] if self.keep_text else None,
            documents=columns if self.known else None,
        )

    def vocabulary(self) -> Sequence[str | None] | None:
        """As Source."""
        return WORDS if self.known else None


def made_documents(count: int = 40, d_sae: int = 24, seed: int = 0, longest: int = 60) -> list[Document]:
    """Documents in which some features are frequent, some rare and some never active; many values are equal.

    Some documents are copies of another one, and some have no features at all.
    """
    rng = np.random.default_rng(seed)
    share = np.where(np.arange(d_sae) % 5 == 4, 0, 0.6 / (1 + np.arange(d_sae)) ** 0.7)  # every fifth is dead
    documents: list[Document] = []
    for number in range(count):
        length = int(rng.integers(1, longest))
        words = [WORDS[i] for i in rng.zipf(1.6, length) % len(WORDS)]
        active = rng.random((length, d_sae)) < share
        values = np.round(rng.gamma(2, 1, (length, d_sae)), 1) + 0.1
        features = [{int(i): float(np.float32(values[t, i])) for i in np.flatnonzero(active[t])} for t in range(length)]
        if number % 8 == 7:
            words, features = documents[-1].words, documents[-1].features
        documents.append(
            Document(words, features, number if seed % 2 else f"doc-{number}", None if number % 3 else "MIT")
        )
    return documents


def write_features(folder: Path, source: MadeSource, **settings: Any) -> Path:
    """The folder that `extract` makes of a source."""
    extract(source, folder, **{"values": "float32", **settings})
    return folder
