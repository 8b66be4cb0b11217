"""The plan of an extraction: the facts that decide its rows, and its parts, cut by the content of the input alone."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_runtime.bundle.files import write_json
from sae_runtime.bundle.typed_json import from_dict, read_file

PLAN = "extract.json"
FORMAT_VERSION = 2
MOST = 1 << 28  # bytes of a plan, and of the index of features; a part takes less than a thousand
_SHA256 = 64  # digits
_FOLLOWS = ("documents", "graph_sha256")  # facts that follow from others, which say more


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

    @functools.cached_property
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
    try:
        found = read_file(dict[str, Any], path, most=MOST)
    except ValueError as error:
        raise ValueError(f"{error}; extract into another folder, or with --force") from error
    if found.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has the format version {found.get('format_version')!r}, this version reads {FORMAT_VERSION}; "
            "extract again into another folder"
        )
    facts = from_dict(dict[str, Any], found.get("facts"), f"{path}.facts")
    parts = from_dict(tuple[Part, ...], found.get("parts"), f"{path}.parts")
    return Plan(facts, parts)


def difference(old: Plan, new: Plan) -> str | None:
    """What differs between two plans, as a phrase for messages; None if nothing does.

    >>> one, other = (Plan({"source": {"files": [{"file": "a.txt", "size": n}]}}, ()) for n in (3, 4))
    >>> difference(one, other)
    'a.txt (size 3), now it is (size 4)'
    """
    if old == new:
        return None
    before, after = _flat(old.facts), _flat(new.facts)
    for name in sorted({**before, **after}, key=_FOLLOWS.__contains__):
        if before.get(name) != after.get(name):
            was, is_now = (f"{facts[name]}" if name in facts else "left out" for facts in (before, after))
            return f"{name} {was}, now it is {is_now}"
    if old.facts != new.facts:
        return "its files in another order"
    for one, other in zip(old.parts, new.parts, strict=False):
        if one != other and replace(one, sha256=other.sha256) == other:
            where = f"rows {other.begin} to {other.end}" if other.end else f"from document {other.first} on"
            return f"other contents in part {other.number}, {where}"
    return "other parts of the same input, as another version cuts it"


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts by names for messages: a file by its own name, what is inside another fact by both names."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if name == "source":
            files = value.get("files", [])
            flat |= {one["file"]: _shown({k: v for k, v in one.items() if k != "file"}) for one in files}
            flat |= {k: _shown(v) for k, v in value.items() if k != "files"}
        elif isinstance(value, Mapping):
            flat |= {f"{name} {inner}": _shown(v) for inner, v in value.items()}
        else:
            flat[name] = _shown(value)
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_shown(v)}' for name, v in value.items())})"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) != _SHA256 or " " in text else f"{text[:12]}..."
