import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.sparse
from conftest import D_IN, make_manifest, make_weights, make_x
from documents import blocks
from numpy.typing import NDArray

from sae_runtime import SAE, Activations, Features, load, open_activations
from sae_runtime.bundle import extras
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.exports.export import export
from sae_runtime.extraction import parquet
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.feature_rows import feature_rows

BundleOf = Callable[..., Path]


@pytest.fixture
def mutual(bundle_of: BundleOf) -> SAE:
    return load(bundle_of("mutual"))


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> SAE:
    """An SAE with a model and a hook in its manifest."""
    path = tmp_path_factory.mktemp("placed") / "sae"
    manifest = dataclasses.replace(make_manifest(150, "mutual"), model="tiny", hook="layer.1")
    bundle.write(path, make_weights(150, "mutual"), manifest)
    export(path)
    return load(path)


def plain(folder: Path, x: NDArray[np.float32]) -> Activations:
    np.save(folder / "x.npy", x)
    return open_activations(folder / "x.npy")


def harvested(folder: Path, sizes: tuple[int, ...], *, model: str | None = "tiny", hook: str | None = None) -> Path:
    """A folder of shards as harvest writes it."""
    folder.mkdir()
    starts = np.cumsum([0, *sizes])
    x = make_x(sum(sizes))
    names = []
    for number, (begin, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        row = np.arange(begin, end, dtype=np.int32)
        tensors = {"activations": x[begin:end], "tokens": 7 * row, "documents": row // 50, "positions": row % 50}
        safetensors.numpy.save_file(tensors, folder / f"shard-{number}.safetensors")
        names.append({"file": f"shard-{number}.safetensors", "rows": len(row)})
    index = {"format_version": 1, "shards": names, "d_in": D_IN, "model": model, "hook": hook}
    (folder / "activations.json").write_text(json.dumps(index))
    return folder


def read_back(path: Path, d_sae: int = 150) -> Features:
    """The features in a file, read with pyarrow."""
    table = pq.read_table(path)
    indices, values = (table[name].combine_chunks() for name in ("indices", "values"))
    assert indices.offsets.equals(values.offsets)
    return Features(
        indices.offsets.to_numpy().astype(np.int64),
        indices.flatten().to_numpy(),
        values.flatten().to_numpy(zero_copy_only=False).astype(np.float32),
        d_sae,
        (len(table),),
    )


def assert_same(found: Features, expected: Features) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("rule", ["served", "batch"])
def test_parquet_holds_what_encode_gives(sae: SAE, tmp_path: Path, rule: Literal["served", "batch"]) -> None:
    x = make_x(5000)  # more tokens than are encoded at once
    made = extract(sae, plain(tmp_path, x), tmp_path / "f.parquet", rule=rule)
    expected = sae.encode_batch(x) if rule == "batch" else sae.encode(x)
    assert_same(read_back(tmp_path / "f.parquet"), expected)
    assert (made.tokens, made.matches) == (5000, len(expected.indices))
    assert made.size == (tmp_path / "f.parquet").stat().st_size


def test_the_batch_rule_of_extract_gives_the_matches_to_all_tokens_together(mutual: SAE, tmp_path: Path) -> None:
    made = extract(mutual, plain(tmp_path, make_x(5000)), tmp_path / "f.parquet", rule="batch")
    assert made.matches == 6 * 5000


def test_the_batch_rule_of_extract_reads_each_row_at_most_twice(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make_x(5000)
    x[::50] *= 5  # these have more features than slots
    sae, activations = load(bundle_of("feature")), plain(tmp_path, x)
    asked: list[NDArray[np.int64]] = []
    read = activations.rows

    def recorded(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.append(ids)
        return read(ids)

    monkeypatch.setattr(activations, "rows", recorded)
    extract(sae, activations, tmp_path / "f.parquet", rule="batch")
    times = np.bincount(np.concatenate(asked), minlength=5000)
    assert max(len(ids) for ids in asked) <= 1024
    assert (times >= 1).all() and (times <= 2).all() and 0 < (times == 2).sum() < 2500
    assert_same(read_back(tmp_path / "f.parquet"), sae.encode_batch(x))


def test_extract_rounds_values_to_float16(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(300)
    extract(mutual, plain(tmp_path, x), tmp_path / "f.parquet", values="float16")
    expected = mutual.encode(x)
    rounded = dataclasses.replace(expected, values=expected.values.astype(np.float16).astype(np.float32))
    assert_same(read_back(tmp_path / "f.parquet"), rounded)
    assert pq.read_schema(tmp_path / "f.parquet").field("values").type == pa.list_(pa.float16())


def test_parquet_of_plain_activations_has_row_numbers_and_no_tokens(mutual: SAE, tmp_path: Path) -> None:
    extract(mutual, plain(tmp_path, make_x(4500)), tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    types = {"doc": pa.int32(), "pos": pa.int32(), "token": pa.int32()}
    lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())}
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == types | lists
    assert table["doc"].to_pylist() == [0] * 4500
    assert table["pos"].to_pylist() == list(range(4500))
    assert table["token"].null_count == 4500


def test_parquet_has_the_ids_of_a_harvest(mutual: SAE, tmp_path: Path) -> None:
    folder = harvested(tmp_path / "acts", (3000, 2000))
    extract(mutual, open_activations(folder), tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    row = np.arange(5000)
    np.testing.assert_array_equal(table["doc"].to_numpy(), row // 50)
    np.testing.assert_array_equal(table["pos"].to_numpy(), row % 50)
    np.testing.assert_array_equal(table["token"].to_numpy(), 7 * row)
    assert_same(read_back(tmp_path / "f.parquet"), mutual.encode(make_x(5000)))


def test_activations_are_read_in_pieces(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 13_192
    x = make_x(n)
    activations = plain(tmp_path, x)
    pieces: list[int] = []
    read = activations.slice

    def recorded(begin: int, end: int) -> NDArray[np.float32]:
        pieces.append(end - begin)
        return read(begin, end)

    monkeypatch.setattr(activations, "slice", recorded)
    extract(mutual, activations, tmp_path / "f.parquet")
    assert sum(pieces) == n and max(pieces) <= 4096
    assert_same(read_back(tmp_path / "f.parquet"), mutual.encode(x))


def test_a_row_group_ends_with_a_part_and_holds_65536_tokens_by_default(mutual: SAE, tmp_path: Path) -> None:
    assert parquet.ROW_GROUP == 65_536 and parquet.ROW_GROUP % 4_096 == 0
    x = make_x(1_000)
    activations = plain(tmp_path, x)
    bounds = [(0, 300), (300, 600), (600, 900), (900, 1_000)]
    parts = [feature_rows(activations, begin, mutual.encode(x[begin:end])) for begin, end in bounds]
    parquet.write(tmp_path / "f.parquet", parts, {"values": "float32", "tokens": 1_000}, row_group=600)
    metadata = pq.read_metadata(tmp_path / "f.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [600, 400]
    assert_same(read_back(tmp_path / "f.parquet"), mutual.encode(x))


def test_columns_of_parquet_have_the_encodings_that_pack_them_best(mutual: SAE, tmp_path: Path) -> None:
    folder = harvested(tmp_path / "acts", (500,))
    extract(mutual, open_activations(folder), tmp_path / "f.parquet", values="float16")
    group = pq.read_metadata(tmp_path / "f.parquet").row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    delta = "DELTA_BINARY_PACKED"
    expected = {"doc": delta, "pos": delta, "token": delta, "indices.list.element": delta}
    expected["values.list.element"] = "BYTE_STREAM_SPLIT"
    # Parquet uses RLE for its marks of nulls and of the starts of lists.
    assert {name: set(column.encodings) - {"RLE"} for name, column in columns.items()} == {
        name: {encoding} for name, encoding in expected.items()
    }
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert not any(column.has_dictionary_page for column in columns.values())


def test_parquet_metadata_describes_the_features(placed: SAE, tmp_path: Path) -> None:
    folder = harvested(tmp_path / "acts", (100,), hook="layer.1")
    extract(placed, open_activations(folder), tmp_path / "f.parquet", rule="batch", values="float16")
    description = json.loads(pq.read_metadata(tmp_path / "f.parquet").metadata[b"sae_runtime"])
    manifest = placed.manifest
    assert description == {
        "format_version": 1,
        "architecture": dataclasses.asdict(manifest.architecture),
        "allocation": manifest.allocation and dataclasses.asdict(manifest.allocation),
        "model": "tiny",
        "hook": "layer.1",
        "weights_sha256": manifest.files[WEIGHTS].sha256,
        "rule": "batch",
        "values": "float16",
        "activations": "acts",
        "tokens": 100,
    }


@pytest.mark.parametrize("rule", ["served", "batch"])
def test_activations_without_rows_give_a_file_without_rows(
    sae: SAE, tmp_path: Path, rule: Literal["served", "batch"]
) -> None:
    made = extract(sae, plain(tmp_path, make_x(0)), tmp_path / "f.parquet", rule=rule)
    assert (made.tokens, made.matches) == (0, 0)
    assert pq.read_table(tmp_path / "f.parquet").num_rows == 0


def test_a_token_without_features_has_an_empty_row(mutual: SAE, tmp_path: Path) -> None:
    x = 3 * make_x(3)
    x[1] = make_weights(150, "mutual")["b_dec"]  # z = relu(b_enc), below every threshold
    extract(mutual, plain(tmp_path, x), tmp_path / "f.parquet")
    rows = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert (rows[1]["indices"], rows[1]["values"]) == ([], [])
    assert rows[0]["indices"] and rows[2]["indices"]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails if an activation is read."""

    def read(*_: Any, **__: Any) -> None:
        pytest.fail("activations were read before the arguments were checked")

    monkeypatch.setattr(Activations, "slice", read)
    monkeypatch.setattr(Activations, "rows", read)


@pytest.mark.usefixtures("unread")
def test_arguments_are_checked_before_any_work(placed: SAE, tmp_path: Path) -> None:
    out = tmp_path / "out" / "f.parquet"
    narrow = plain(tmp_path, np.zeros((3, 7), np.float32))
    with pytest.raises(ValueError, match=r"x\.npy: activations have d_in 7, this SAE expects 24 \(tiny, layer\.1\); "):
        extract(placed, narrow, out)
    other = open_activations(harvested(tmp_path / "other", (5,), hook="layer.2"))
    message = r"other: activations come from hook 'layer\.2', this SAE was fitted on 'layer\.1'; harvest those, or pass"
    with pytest.raises(ValueError, match=message):
        extract(placed, other, out)
    big = open_activations(harvested(tmp_path / "big", (5,), model="big", hook="layer.1"))
    with pytest.raises(ValueError, match=r"big: activations come from model 'big', this SAE was fitted on 'tiny'; "):
        extract(placed, big, out)
    good = plain(tmp_path, make_x(3))
    with pytest.raises(ValueError, match=r"rule must be 'served' or 'batch', got 'both'"):
        extract(placed, good, out, rule="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"values must be 'float32' or 'float16', got 'int8'"):
        extract(placed, good, out, values="int8")  # type: ignore[arg-type]
    assert not out.parent.exists()
    out.parent.mkdir()
    with pytest.raises(FileExistsError, match=r"out is a folder; name a file in it"):
        extract(placed, good, out.parent, force=True)
    with pytest.raises(ValueError, match=r"^the output - would be standard output, which is not supported; name"):
        extract(placed, good, Path("-"))
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"f\.parquet already exists; pass --force"):
        extract(placed, good, out)
    assert out.read_text() == "mine"


def test_any_source_accepts_activations_of_another_model(placed: SAE, tmp_path: Path) -> None:
    folder = harvested(tmp_path / "acts", (50,), model="big", hook="layer.2")
    extract(placed, open_activations(folder), tmp_path / "f.parquet", any_source=True)
    assert_same(read_back(tmp_path / "f.parquet"), placed.encode(make_x(50)))


@pytest.mark.parametrize(("model", "hook"), [(None, None), ("tiny", None), (None, "layer.1"), ("tiny", "layer.1")])
def test_extract_accepts_activations_of_an_unknown_source(
    placed: SAE, mutual: SAE, tmp_path: Path, model: str | None, hook: str | None
) -> None:
    activations = open_activations(harvested(tmp_path / "acts", (5,), model=model, hook=hook))
    for number, sae in enumerate((placed, mutual)):
        assert extract(sae, activations, tmp_path / f"{number}.parquet").tokens == 5


def test_a_value_too_large_for_float16_names_its_row(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(5000)
    x[4321] *= 1e6
    activations = plain(tmp_path, x)
    with pytest.raises(
        ValueError, match=r"row 4321 has a value of .*e\+0\d, too large for float16 \(at most 65504\); "
    ):
        extract(mutual, activations, tmp_path / "f.parquet", values="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
    extract(mutual, activations, tmp_path / "f.parquet")
    assert read_back(tmp_path / "f.parquet").values.max() > 65504


@pytest.mark.parametrize("rule", ["served", "batch"])
def test_a_bad_row_is_named_by_its_number(mutual: SAE, tmp_path: Path, rule: Literal["served", "batch"]) -> None:
    x = make_x(5000)
    x[4500, 3] = np.nan
    with pytest.raises(ValueError, match=r"x\.npy: row 4500 holds NaN or Inf"):
        extract(mutual, plain(tmp_path, x), tmp_path / "f.parquet", rule=rule)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_row_that_overflows_is_named(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(5000)
    x[4500] = 3e38 * np.sign(make_weights(150, "mutual")["W_enc"][:, 0])
    with pytest.raises(ValueError, match=r"x\.npy, from row 4096 on: row 404 of the activations is so large that its"):
        extract(mutual, plain(tmp_path, x), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"row 4500 of the activations is so large that its"):
        extract(mutual, plain(tmp_path, x), tmp_path / "f.parquet", rule="batch")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("force", [False, True])
def test_an_extraction_that_breaks_off_keeps_the_old_output(
    mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], force: bool
) -> None:
    activations = plain(tmp_path, make_x(9000))
    out = tmp_path / "f.parquet"
    if force:
        out.write_text("the old one")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    read = activations.slice

    def breaks_off(begin: int, end: int) -> NDArray[np.float32]:
        if begin > 4096:
            assert len(list(tmp_path.iterdir())) == len(before) + 1  # the partial file
            raise error("broken off")
        return read(begin, end)

    monkeypatch.setattr(activations, "slice", breaks_off)
    with pytest.raises(error, match="broken off"):
        extract(mutual, activations, out, force=force)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_force_replaces_an_existing_file(mutual: SAE, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    out.write_text("the old one")
    extract(mutual, plain(tmp_path, make_x(10)), out, force=True)
    assert_same(read_back(out), mutual.encode(make_x(10)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rule", ["served", "batch"])
@pytest.mark.parametrize(("stream", "progress", "shown"), [(Terminal, True, True), (Terminal, False, False)])
def test_extract_shows_a_bar_with_progress(
    mutual: SAE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    progress: bool,
    shown: bool,
    rule: Literal["served", "batch"],
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    extract(mutual, plain(tmp_path, make_x(10)), tmp_path / "f.parquet", rule=rule, progress=progress)
    assert ("10.0/10.0" in stderr.getvalue()) == shown
    assert bool(stderr.getvalue()) == shown


def test_extract_shows_no_bar_without_a_terminal(
    mutual: SAE, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extract(mutual, plain(tmp_path, make_x(10)), tmp_path / "f.parquet", progress=True)
    assert capfd.readouterr() == ("", "")


def test_parquet_without_pyarrow_names_the_extra(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda extra: ["pyarrow"] if extra == "extract" else [])
    with pytest.raises(ImportError, match=r"pyarrow not installed; run: pip install 'sae-runtime\[extract\]'"):
        extract(mutual, plain(tmp_path, make_x(10)), tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()


def test_delphi_needs_no_pyarrow(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    activations = open_activations(harvested(tmp_path / "acts", (300,), hook="layer.1"))
    made = extract(mutual, activations, tmp_path / "out", format="delphi")
    assert made.tokens == 256
    assert made.size == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("out", "coo", "format must be 'parquet' or 'delphi', got 'coo'"),
        (
            "f.npz",
            "parquet",
            r"f\.npz does not end in \.parquet; name a \.parquet file, or a folder with --format delphi",
        ),
        (
            "f.parquet",
            "delphi",
            r"f\.parquet ends in \.parquet, but delphi reads a folder; name a folder, or leave out",
        ),
        ("out", "delphi", r"x\.npy does not know its tokens, which delphi shows to its explainers; "),
    ],
)
def test_formats_are_checked_before_any_work(
    mutual: SAE, tmp_path: Path, name: str, format: Literal["parquet", "delphi"], message: str
) -> None:
    activations = plain(tmp_path, make_x(300))
    with pytest.raises(ValueError, match=message):
        extract(mutual, activations, tmp_path / name, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("rule", ["served", "batch"])
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_the_documented_call_reads_parquet_into_scipy(
    sae: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Literal["served", "batch"], n: int
) -> None:
    monkeypatch.chdir(tmp_path)
    extract(sae, plain(tmp_path, make_x(n)), Path("features.parquet"), rule=rule)
    (call,) = (block for block in blocks("interop.md") if "features.parquet" in block)
    names: dict[str, Any] = {}
    exec(call, names)
    matrix = names["matrix"]
    assert isinstance(matrix, scipy.sparse.csr_array) and matrix.has_canonical_format
    assert (matrix.shape, matrix.dtype) == ((n, 150), np.float32)
    encode = sae.encode if rule == "served" else sae.encode_batch
    assert (matrix != encode(make_x(n)).to_scipy()).nnz == 0
