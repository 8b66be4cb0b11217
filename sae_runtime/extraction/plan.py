"""The plan of an extraction: the facts that decide its rows, and its parts, cut by the content of the input alone."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.files import write_json
from sae_runtime.bundle.typed_json import from_dict, read_file

PLAN = "extract.json"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the input.

    Attributes:
        number: of the part, from 0.
        first: number of its first document.
        documents: how many it has, consecutive ones; 0 where activations do not know their documents.
        sha256: of what it reads: texts or ids, places, names and columns of documents, or rows of activations.
        file, row, byte: the place of its first document, as `activations.documents` has it.
        begin, end: its rows of activations; 0 for texts.
    """

    number: int
    first: int
    documents: int
    sha256: str
    file: int = 0
    row: int = 0
    byte: int | None = None
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Plan:
    """What decides the rows, as JSON, and the parts.

    >>> plan = Plan({"hook": "h.3"}, (Part(number=0, first=0, documents=2, sha256="9f86"),))
    >>> plan.write(Path("."))
    >>> read_plan(Path(".")) == plan
    True
    """

    facts: Mapping[str, Any]
    parts: tuple[Part, ...]

    @property
    def sha256(self) -> str:
        """Of the facts and the parts."""
        return hashlib.sha256(json.dumps(self._json(), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the plan into a folder of features."""
        write_json(folder / PLAN, self._json())

    def _json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "facts": dict(self.facts), "parts": [asdict(p) for p in self.parts]}


def read_plan(folder: Path) -> Plan:
    """The plan that a folder of features was begun with.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not readable.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {PLAN}, so no extraction was begun there; name another folder")
    found = read_file(dict[str, Any], path)
    if found.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {found.get('format_version')!r}, this version reads {FORMAT_VERSION}; "
            "extract again into another folder"
        )
    facts = from_dict(dict[str, Any], found.get("facts"), f"{path}.facts")
    parts = from_dict(tuple[Part, ...], found.get("parts"), f"{path}.parts")
    return Plan(facts, parts)


def difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first fact that differs, as a phrase for messages; None if none does.

    >>> difference({"text": {"context": 128}}, {"text": {"context": 64}})
    'context 128, now it is 64'
    """
    if old == new:
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys((*new, *old))
        found = (difference(old.get(name), new.get(name), str(name)) for name in names)
        return next(phrase for phrase in found if phrase is not None)
    if isinstance(old, list) and isinstance(new, list):
        for one, other in zip(old, new, strict=False):
            if (phrase := difference(one, other, where)) is not None:
                return phrase
        return f"{len(old)} {where}, now there are {len(new)}"
    return f"{where} {old!r}, now it is {new!r}"
