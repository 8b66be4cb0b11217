import io

import numpy as np
import pytest

from sae_runtime import Features
from sae_runtime.extraction.encodings import VALUES, rounded, writer_options


def features(values: "np.ndarray") -> Features:
    """The features of two tokens, the first without any."""
    return Features(np.array([0, 0, len(values)]), np.arange(len(values), dtype=np.int32), values, 5000, (2,))


def test_float24_is_the_nearest_number_of_16_significant_bits() -> None:
    values = np.exp(np.random.default_rng(0).uniform(-80, 80, 4000)).astype(np.float32)
    made = rounded(features(values), "float24")
    assert made.dtype == np.float32
    mantissa, exponent = np.frexp(values.astype(np.float64))
    np.testing.assert_array_equal(made, np.ldexp(np.rint(np.ldexp(mantissa, 16)), exponent - 16))


def test_no_match_rounds_to_nothing_or_to_infinity() -> None:
    ends = np.array([1e-45, np.finfo(np.float32).max], np.float32)
    for kind in ("float24", "float32"):
        made = rounded(features(ends), kind)
        assert 0 < made[0] and np.isfinite(made).all()
    assert 0 < rounded(features(ends[:1]), "float16")[0]
    with pytest.raises(ValueError, match="row 8 has a value of 3.40282e[+]38, too large for float16"):
        rounded(features(ends), "float16", name=lambda row: f"row {row + 7}")


@pytest.mark.parametrize("kind", VALUES)
def test_a_table_comes_back_and_an_altered_page_is_noticed(kind: "str") -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    values = rounded(features(np.linspace(1, 2, 4000, dtype=np.float32)), kind)  # type: ignore[arg-type]
    offsets = pa.array([0, 0, 4000], pa.int32())
    columns = {
        "doc": pa.array([0, 1], pa.int32()),
        "id": pa.array([7, 8]),
        "file": ["a", "b"],
        "indices": pa.ListArray.from_arrays(offsets, pa.array(np.arange(4000, dtype=np.int32))),
        "values": pa.ListArray.from_arrays(offsets, pa.array(values)),
    }
    table, file = pa.table(columns), io.BytesIO()
    with pq.ParquetWriter(file, table.schema, **writer_options(table.schema)) as writer:
        writer.write_table(table)
    assert pq.read_table(file).equals(table)
    column = pq.ParquetFile(file).metadata.row_group(0).column(4)
    assert ("BYTE_STREAM_SPLIT" in column.encodings) == (kind != "float16")  # DuckDB reads no split float16
    altered = bytearray(file.getvalue())
    altered[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    with pytest.raises(OSError, match="(?i)crc|checksum"):
        pq.read_table(io.BytesIO(altered), page_checksum_verification=True)
