"""The Parquet files of a part of features: their schemas and encodings, how they are written, whether they are whole.

Each file's key-value metadata holds, as JSON under `sae_runtime`, the format version, the plan and the part it is of,
and the part's tokens, documents and matches. Between its pages and its footer, where no reader looks, stands the sha256
of all its other bytes: checksums of pages do not cover the footer, which says where the columns are.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.files import new_file, new_files
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.core.features import Features
from sae_runtime.extraction.column_kinds import as_kind
from sae_runtime.extraction.encodings import ROW_GROUP, Values, rounded, writer_options
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import FORMAT_VERSION

TOKENS, DOCUMENTS, VOCABULARY = "tokens", "documents", "vocabulary.parquet"
KEY = b"sae_runtime"
_END = 8  # bytes: the length of the footer, and Parquet's magic number
_DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True, kw_only=True)
class PartOf:
    """Which part a file is of, and what the part has."""

    format_version: int
    plan: str
    part: int
    tokens: int
    documents: int
    matches: int


def file_of(number: int) -> str:
    """The name of a part's file.

    >>> file_of(7)
    'part-00007.parquet'
    """
    return f"part-{number:05d}.parquet"


def write_part(
    folder: Path,
    number: int,
    rows: PartRows,
    *,
    plan: str,
    values: Values = "float24",
    kinds: Mapping[str, str] | None = None,
    pooled: Features | None = None,
) -> None:
    """Write the files of a part, whole or not at all: tokens/, and documents/ where these are known.

    Args:
        folder: of the features.
        number: of the part.
        rows: of the part.
        plan: sha256 of the plan.
        values: type of the values.
        kinds: of the columns of documents whose values come from the input, in the order of the columns.
        pooled: features of the documents; then there is no tokens/.

    Raises:
        ValueError: a value is too large for float16.
    """
    import pyarrow

    features = rows.features if pooled is None else pooled
    documents = None if rows.documents is None else _documents(rows, values, kinds or {}, pooled)
    described = PartOf(
        format_version=FORMAT_VERSION,
        plan=plan,
        part=number,
        tokens=len(rows.doc),
        documents=0 if documents is None else len(documents),
        matches=len(features.values),
    )
    tables = {} if documents is None else {DOCUMENTS: documents}
    if pooled is None:
        tables[TOKENS] = pyarrow.table(_tokens(rows) | _lists(rows.features, values, lambda row: _token(rows, row)))
    paths = {name: folder / name / file_of(number) for name in tables}
    with new_files(list(paths.values()), force=True) as partials:
        for partial, table in zip(partials, tables.values(), strict=True):
            _write(partial, table.replace_schema_metadata({KEY: json.dumps(asdict(described))}))


def read_part_of(path: Path) -> PartOf:
    """Which part a file is of, by its metadata.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not whole, or no part of features.
    """
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a whole Parquet file ({' '.join(str(error).split())[:200]})") from error
    found: PartOf = read_json(PartOf, metadata.get(KEY, b"null"), f"the metadata of {path}")
    return found


def is_whole(folder: Path, number: int, plan: str, names: Sequence[str]) -> bool:
    """Whether a part's files in `names` are there, of this plan, and as they were written, by their sha256."""
    try:
        for path in (folder / name / file_of(number) for name in names):
            if path.is_symlink():  # readers refuse what is not in the folder
                return False
            content = path.read_bytes()
            pages, footer = _split(content)
            if pages[-_DIGEST:] != hashlib.sha256(pages[:-_DIGEST] + footer).digest():
                return False
            found = read_part_of(path)
            if (found.format_version, found.plan, found.part) != (FORMAT_VERSION, plan, number):
                return False
    except (OSError, ValueError):
        return False
    return True


def write_vocabulary(path: Path, names: Sequence[str | None]) -> None:
    """Write the names of tokens as the tokenizer has them; ids without a name are left out.

    >>> write_vocabulary(Path("vocabulary.parquet"), ["[PAD]", None, "the"])
    """
    import pyarrow

    known = [number for number, name in enumerate(names) if name is not None]
    columns = {"token": pyarrow.array(known, pyarrow.int32()), "text": [names[number] for number in known]}
    with new_file(path, force=True) as partial:
        _write(partial, pyarrow.table(columns))


def _write(path: Path, table: Any) -> None:
    import pyarrow.parquet

    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer, row_group_size=ROW_GROUP, **writer_options(table.schema))
    pages, footer = _split(buffer.getvalue().to_pybytes())
    path.write_bytes(pages + hashlib.sha256(pages + footer).digest() + footer)


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The pages of a Parquet file, and its footer."""
    begin = len(content) - _END - int.from_bytes(content[-_END:][:4], "little")
    return content[: max(begin, 0)], content[max(begin, 0) :]


def _tokens(rows: PartRows) -> dict[str, Any]:
    import pyarrow

    known = {name: getattr(rows, name) for name in ("doc", "pos", "token", "begin", "end")}
    nothing = pyarrow.nulls(len(rows.doc), pyarrow.int32())
    return {name: nothing if x is None else pyarrow.array(x, pyarrow.int32()) for name, x in known.items()}


def _documents(rows: PartRows, values: Values, kinds: Mapping[str, str], features: Features | None) -> Any:
    import pyarrow

    assert rows.documents is not None
    columns = dict(rows.documents)
    numbers = np.asarray(columns["doc"])
    columns["tokens"] = np.bincount(np.searchsorted(numbers, rows.doc), minlength=len(numbers))
    types = {"doc": pyarrow.int32(), "file": pyarrow.string(), "row": pyarrow.int64(), "tokens": pyarrow.int32()}
    order = ["doc", "file", "row", "id", "tokens"]
    arrays = {}
    for name in (*order, *(name for name in columns if name not in order)):
        kind = kinds.get(name, "string")
        given = columns[name] if name in types else as_kind(columns[name], kind)
        arrays[name] = pyarrow.array(given, types.get(name) or getattr(pyarrow, kind.replace("bool", "bool_"))())
    if features is not None:
        arrays |= _lists(features, values, lambda row: f"document {numbers[row]}")
    return pyarrow.table(arrays)


def _token(rows: PartRows, number: int) -> str:
    return f"the token at position {rows.pos[number]} of document {rows.doc[number]}"


def _lists(features: Features, values: Values, name: Callable[[int], str]) -> dict[str, Any]:
    import pyarrow

    offsets = pyarrow.array(features.indptr, pyarrow.int32())  # pyarrow refuses an offset beyond int32
    return {
        "indices": pyarrow.ListArray.from_arrays(offsets, pyarrow.array(features.indices)),
        "values": pyarrow.ListArray.from_arrays(offsets, pyarrow.array(rounded(features, values, name=name))),
    }
