"""Rows of a Parquet table in their order, of which each is read once."""

from typing import Any


class RowStream:
    """Gives rows of a table that are asked for in ascending order. Memory holds the row groups of what is asked for.

    >>> import pyarrow, pyarrow.parquet
    >>> pyarrow.parquet.write_table(pyarrow.table({"a": range(10)}), "rows.parquet", row_group_size=4)
    >>> stream = RowStream(pyarrow.parquet.ParquetFile("rows.parquet"), 5)
    >>> stream.take(6, 3)["a"].to_pylist()
    [6, 7, 8]
    """

    def __init__(self, table: Any, begin: int) -> None:
        """Open a stream of a `ParquetFile`, from the row group of the row `begin` on."""
        self._table = table
        self._group = self._next = 0  # the row group that is read next, and the number of its first row
        while self._group < table.num_row_groups and self._next + self._rows_of(self._group) <= begin:
            self._next += self._rows_of(self._group)
            self._group += 1
        self._waiting: list[Any] = []  # row groups that were read and are not all taken

    def take(self, begin: int, count: int) -> Any:
        """So many rows from `begin` on as a table, fewer where the table ends.

        Args:
            begin: at least the end of the rows that were taken before.
            count: number of rows.
        """
        import pyarrow

        while self._next < begin + count and self._group < self._table.num_row_groups:
            # One at a time: iter_batches of pyarrow 26.0 keeps memory of all row groups that it has read.
            self._waiting.append(self._table.read_row_group(self._group))
            self._next += len(self._waiting[-1])
            self._group += 1
            self._forget(begin)
        rows = pyarrow.concat_tables([self._table.schema_arrow.empty_table(), *self._waiting])
        taken = rows.slice(begin - self._first, count)
        self._forget(begin + count)
        return taken

    def _forget(self, end: int) -> None:
        """Forget the row groups that end before a row."""
        while self._waiting and self._first + len(self._waiting[0]) <= end:
            self._waiting.pop(0)

    def _rows_of(self, group: int) -> int:
        rows: int = self._table.metadata.row_group(group).num_rows
        return rows

    @property
    def _first(self) -> int:
        """Number of the first row that waits."""
        return self._next - sum(map(len, self._waiting))
