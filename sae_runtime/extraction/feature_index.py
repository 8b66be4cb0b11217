"""The index of a folder of features, `features.json`: what holds for all of them, and the files of each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.manifest import FileRecord
from sae_runtime.bundle.typed_json import from_dict, read_file
from sae_runtime.extraction.encodings import VALUES
from sae_runtime.extraction.part_files import DOCUMENTS, TOKENS, file_of
from sae_runtime.extraction.plan import FORMAT_VERSION, MOST, PLAN

INDEX = "features.json"
_STORE = "store.json"
Kind = Literal["tokens", "documents"]


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A part in the index: its rows and matches, and the size and sha256 of its files by their names."""

    tokens: int
    documents: int
    matches: int
    files: dict[str, FileRecord]


def read_index(path: Path) -> tuple[Mapping[str, Any], tuple[PartRecord, ...]]:
    """What an index says of all features, and its parts, whose files have the sizes that it names.

    Raises:
        FileNotFoundError: there is no such folder, or a part is missing.
        ValueError: it holds no features, unfinished ones, or those of another version; or a part has another size.

    >>> described, parts = read_index(Path(features_path))
    >>> described["per"], [part.tokens for part in parts]
    ('token', [600])
    """
    index = path / INDEX
    if not index.is_file():
        _refuse(path)
    found = read_file(dict[str, Any], index, version=FORMAT_VERSION, field="format_version", most=MOST)
    described = {name: value for name, value in found.items() if name != "parts"}
    records = from_dict(tuple[PartRecord, ...], found.get("parts"), f"{index}: parts")
    for name, kinds in (("per", ("token", "document")), ("values", VALUES)):
        if described.get(name) not in kinds:
            raise ValueError(f"{index}: {name} must be {' or '.join(kinds)}; extract again")
    if type(described.get("d_sae")) is not int or described["d_sae"] < 1:
        raise ValueError(f"{index}: d_sae must be a whole number from 1 on; extract again")
    kind = folder_of(described["per"])
    for number, one in enumerate(records):
        allowed = {f"{folder}/{file_of(number)}" for folder in (TOKENS, DOCUMENTS)}
        if f"{kind}/{file_of(number)}" not in one.files or not one.files.keys() <= allowed:
            raise ValueError(f"{index}: part {number} has the files {sorted(one.files)}; extract again")
        if min(one.tokens, one.documents, one.matches) < 0:
            raise ValueError(f"{index}: part {number} has fewer than 0 rows; extract again")
        for name, record in one.files.items():
            check_size(path, name, record)
    return described, records


def folder_of(per: str) -> Kind:
    """The folder of the rows of features, one for each token or document.

    >>> folder_of("token")
    'tokens'
    """
    return "tokens" if per == "token" else "documents"


def check_size(folder: Path, name: str, record: FileRecord) -> None:
    """Raise FileNotFoundError or ValueError if a file is missing, is a link out of the folder, or has another size."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run the same extract again, which makes what is missing")
    refuse_link_out(path, folder)
    if (size := path.stat().st_size) != record.size:
        raise ValueError(f"{path} has {size:,} bytes, expected {record.size:,}: truncated or altered; copy it again")


def _refuse(path: Path) -> None:
    """Say what a path is that holds no index of features."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make features: sae-runtime extract")
    if (path / PLAN).is_file():
        raise ValueError(f"{path} is not finished; run the same extract again, which makes what is missing")
    if (path / _STORE).is_file():
        raise ValueError(
            f"{path} is a feature store, which open_store and features show read; name the features it is of"
        )
    what = "a file of an older version" if path.suffix == ".parquet" and path.is_file() else "no folder of features"
    raise ValueError(f"{path} is {what}; make features: sae-runtime extract")
