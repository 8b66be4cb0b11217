"""Rows of a Parquet table in their order, of which each is read once."""

from typing import Any

_ROWS = 1 << 12  # of a batch: contexts of a feature are some ten, each with the numbers of some hundred tokens


class RowStream:
    """Gives rows of a table that are asked for in ascending order. Memory holds one batch of rows.

    >>> import pyarrow, pyarrow.parquet
    >>> pyarrow.parquet.write_table(pyarrow.table({"a": range(10)}), "rows.parquet", row_group_size=4)
    >>> stream = RowStream(pyarrow.parquet.ParquetFile("rows.parquet"), 5)
    >>> stream.take(6, 3)["a"].to_pylist()
    [6, 7, 8]
    """

    def __init__(self, table: Any, begin: int) -> None:
        """Open a stream of a `ParquetFile`, from the row group of the row `begin` on."""
        groups = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
        first = 0
        self._next = 0  # number of the row after those that were read
        while first < len(groups) and self._next + groups[first] <= begin:
            self._next += groups[first]
            first += 1
        inside = range(first, len(groups))
        self._batches = table.iter_batches(batch_size=_ROWS, row_groups=inside) if len(inside) else iter(())
        self._schema = table.schema_arrow
        self._waiting: list[Any] = []  # batches that were read and are not taken

    def take(self, begin: int, count: int) -> Any:
        """So many rows from `begin` on as a table, fewer where the table ends.

        Args:
            begin: at least the end of the rows that were taken before.
            count: number of rows.
        """
        import pyarrow

        while self._next < begin + count and (batch := next(self._batches, None)) is not None:
            self._next += len(batch)
            self._waiting.append(batch)
            while self._waiting and self._first + len(self._waiting[0]) <= begin:
                self._waiting.pop(0)
        table = pyarrow.Table.from_batches(self._waiting, self._schema)
        taken = table.slice(begin - self._first, count)
        while self._waiting and self._first + len(self._waiting[0]) <= begin + count:
            self._waiting.pop(0)
        return taken

    @property
    def _first(self) -> int:
        """Number of the first row that waits."""
        return self._next - sum(map(len, self._waiting))
