"""Records of columnar files: Parquet, Arrow's files and streams, and folders that the datasets library saved.

pyarrow reads them, part by part, and only the fields that are asked for. Rows count from 0. The parts before an entry
are not read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.activations.reading import Entry, Reading, one_of
from sae_runtime.activations.text_files import BEGIN, Records
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.typed_json import read_file

STATE = "state.json"
SPLITS = "dataset_dict.json"
_ROWS = 256  # in memory as Python values
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


def parquet(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    """The rows of a Parquet file, by row groups.

    >>> import pyarrow, pyarrow.parquet
    >>> pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2]}), "a.parquet")
    >>> [record for _, record in parquet(Path("a.parquet"), Reading())]
    [{'text': 'one'}, {'text': 'two'}]
    """
    require("extract")
    import pyarrow.parquet

    with _sound(path), pyarrow.parquet.ParquetFile(path) as file:
        _check(path, file.schema_arrow.names, reading)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > entry.row:
                batches = file.iter_batches(_ROWS, row_groups=[group], columns=list(reading.fields))
                yield from _rows(batches, reading, entry, first)
            first += rows


def arrow(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    """The rows of a file in Arrow's file or stream format, which .feather files have too.

    >>> import pyarrow.feather
    >>> pyarrow.feather.write_feather(pyarrow.table({"text": ["one", "two"]}), "a.arrow")
    >>> [record for _, record in arrow(Path("a.arrow"), Reading(), Entry(1))]
    [{'text': 'two'}]
    """
    require("extract")
    import pyarrow

    with _sound(path), pyarrow.memory_map(str(path)) as mapped:
        if mapped.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(mapped)
            _check(path, file.schema.names, reading)
            yield from _rows(map(file.get_batch, range(file.num_record_batches)), reading, entry)
            return
        mapped.seek(0)
        stream = pyarrow.ipc.open_stream(mapped)
        _check(path, stream.schema.names, reading)
        yield from _rows(stream, reading, entry)
        # pyarrow takes a stream that was cut between two messages for whole, and reads only the first of two streams.
        end = mapped.tell()
        mapped.seek(max(end - len(_END), 0))
        if end != mapped.size() or mapped.read(len(_END)) != _END:
            raise pyarrow.ArrowInvalid(
                f"the stream ends at byte {end} of {mapped.size()}, or without the mark of its end"
            )


def saved_dataset(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    """The rows of a folder that `datasets.Dataset.save_to_disk` wrote."""
    begin = 0
    for file in dataset_files(path)[1:]:
        rows = _rows_of(file)
        if begin + rows > entry.row:
            for at, record in arrow(file, reading, Entry(max(entry.row - begin, 0))):
                yield Entry(begin + at.row), record
        begin += rows


@dataclass(frozen=True)
class _File:
    filename: str


@dataclass(frozen=True)
class _State:
    _data_files: tuple[_File, ...]
    _indices_data_files: tuple[_File, ...] | None = None


def dataset_files(folder: Path) -> list[Path]:
    """The files of a folder of the datasets library: its state, and its data in order.

    Raises:
        ValueError: it holds several splits, a file is missing, or an old version saved it with indices.
    """
    if (folder / SPLITS).is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if (entry / STATE).is_file())
        known = " or ".join(str(folder / split) for split in splits)
        raise ValueError(f"{folder} holds several splits; name one, {known}")
    state = folder / STATE
    saved: _State = read_file(_State, state, more=True, foreign=True)
    if saved._indices_data_files:
        raise ValueError(f"{folder} was saved with indices by an old version of datasets; save it again by a later one")
    for file in saved._data_files:
        if Path(file.filename).name != file.filename or not (folder / file.filename).is_file():
            raise ValueError(f"{folder} lacks its file {file.filename}; save it again")
    return [state, *(folder / file.filename for file in saved._data_files)]


def _rows(batches: Any, reading: Reading, entry: Entry, row: int = 0) -> Records:
    """The records of batches from that of the entry on; the first batch begins at `row`."""
    for batch in batches:
        if row + batch.num_rows <= entry.row:
            row += batch.num_rows
            continue
        wanted = batch.select(list(reading.fields))
        wanted.validate(full=True)  # offsets beyond a damaged file would end the process
        for begin in range(0, batch.num_rows, _ROWS):
            for record in wanted.slice(begin, _ROWS).to_pylist():
                if row >= entry.row:
                    yield Entry(row), record
                row += 1


def _rows_of(path: Path) -> int:
    """Number of rows of a file in Arrow's file or stream format."""
    require("extract")
    import pyarrow

    with _sound(path), pyarrow.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        if is_file:
            file = pyarrow.ipc.open_file(mapped)
            return sum(file.get_batch(number).num_rows for number in range(file.num_record_batches))
        return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(mapped))


def _check(path: Path, names: list[str], reading: Reading) -> None:
    for field in reading.fields:
        one_of(path, field, names)


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Give the errors of pyarrow as one sentence. Others are of this package, and stay."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, NotImplementedError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a whole file of its format ({text}); save it again") from error
