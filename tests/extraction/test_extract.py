"""Activations to a folder of features: what the parts hold, how they resume, and what is refused."""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from conftest import D_IN, make_manifest, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime import SAE, Activations, Features, load, open_activations
from sae_runtime.bundle import extras
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.bundle.siblings import lock
from sae_runtime.exports.export import export
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import Extracted, extract, planned
from sae_runtime.extraction.part_rows import PartRows, Pool, pooled
from sae_runtime.extraction.tasks import MakeParts, Task, local

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
    """A folder of shards as harvest writes it: documents of 50 tokens, every second number, with their sources."""
    folder.mkdir()
    starts = np.cumsum([0, *sizes])
    x = make_x(sum(sizes))
    names = []
    for number, (begin, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        row = np.arange(begin, end, dtype=np.int32)
        tensors = {"activations": x[begin:end], "tokens": 7 * row, "documents": row // 50 * 2, "positions": row % 50}
        safetensors.numpy.save_file(tensors, folder / f"shard-{number}.safetensors")
        names.append({"file": f"shard-{number}.safetensors", "rows": len(row)})
    lines = [{"document": 2 * n, "file": "a.jsonl", "row": 3 * n, "id": 100 + n} for n in range(-(-len(x) // 50))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "documents.jsonl").write_text(text)
    index: dict[str, Any] = {"format_version": 1, "shards": names, "d_in": D_IN, "model": model, "hook": hook}
    index["sources"] = {"file": "documents.jsonl", "bytes": len(text)}
    (folder / "activations.json").write_text(json.dumps(index))
    return folder


def made(sae: SAE, activations: Activations, out: Path, *, part: int = 1_000, **settings: Any) -> Extracted:
    return extract(ArraySource(sae, activations, part=part), out, **settings)


def exactly(sae: SAE, activations: Activations, out: Path, **settings: Any) -> Extracted:
    return made(sae, activations, out, values="float32", **settings)


def table(path: Path) -> Any:
    """All parts of a folder, in order, as plain pyarrow reads them."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(path.glob("*.parquet"))]).combine_chunks()


def features_of(rows: Any, d_sae: int = 150) -> Features:
    indices, values = (rows[name].chunk(0) for name in ("indices", "values"))
    assert indices.offsets.equals(values.offsets)
    return Features(
        indices.offsets.to_numpy().astype(np.int64),
        indices.flatten().to_numpy(),
        values.flatten().to_numpy(zero_copy_only=False).astype(np.float32),
        d_sae,
        (len(rows),),
    )


def assert_same(found: Features, expected: Features) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.values, expected.values)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parts_hold_what_encode_gives(sae: SAE, tmp_path: Path) -> None:
    x = make_x(2_500)
    got = exactly(sae, plain(tmp_path, x), tmp_path / "f")
    expected = sae.encode(x)
    assert_same(features_of(table(tmp_path / "f" / "tokens")), expected)
    assert (got.tokens, got.documents, got.rows, got.parts) == (2_500, 0, 2_500, 3)
    assert got.matches == len(expected.indices)
    assert got.size == sum(map(len, contents(tmp_path / "f").values()))


def test_tokens_of_plain_activations_have_row_numbers_and_nothing_else(mutual: SAE, tmp_path: Path) -> None:
    exactly(mutual, plain(tmp_path, make_x(1_500)), tmp_path / "f")
    rows = table(tmp_path / "f" / "tokens")
    types = dict.fromkeys(("doc", "pos", "token", "begin", "end"), pa.int32())
    lists = {"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())}
    assert dict(zip(rows.schema.names, rows.schema.types, strict=True)) == types | lists
    assert rows["doc"].to_pylist() == [0] * 1_500 and rows["pos"].to_pylist() == list(range(1_500))
    assert [rows[name].null_count for name in ("token", "begin", "end")] == [1_500] * 3
    assert not (tmp_path / "f" / "documents").exists()


def test_parts_of_a_harvest_cut_no_document_and_lead_back_to_files(mutual: SAE, tmp_path: Path) -> None:
    folder, out = harvested(tmp_path / "acts", (1_230, 770)), tmp_path / "f"
    exactly(mutual, open_activations(folder), out, part=480)
    rows, row = table(out / "tokens"), np.arange(2_000)
    np.testing.assert_array_equal(rows["doc"].to_numpy(), row // 50 * 2)
    np.testing.assert_array_equal(rows["pos"].to_numpy(), row % 50)
    np.testing.assert_array_equal(rows["token"].to_numpy(), 7 * row)
    assert_same(features_of(rows), mutual.encode(make_x(2_000)))
    assert [len(pq.read_table(path)) for path in sorted((out / "tokens").iterdir())] == [500] * 4
    documents = table(out / "documents").to_pydict()
    assert documents == {
        "doc": list(range(0, 80, 2)),
        "file": ["a.jsonl"] * 40,
        "row": list(range(0, 120, 3)),
        "id": list(range(100, 140)),
        "tokens": [50] * 40,
    }


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
def test_a_document_has_the_pooled_features_of_its_tokens(mutual: SAE, tmp_path: Path, pool: Pool) -> None:
    folder, out = harvested(tmp_path / "acts", (730,)), tmp_path / "f"
    got = exactly(mutual, open_activations(folder), out, part=200, per="document", pool=pool)
    dense = np.split(mutual.encode(make_x(730)).to_dense().astype(np.float64), range(50, 730, 50))
    expected = np.stack([getattr(np, pool)(one, axis=0) for one in dense])
    found = features_of(table(out / "documents"))
    np.testing.assert_allclose(found.to_dense(), expected, rtol=1e-6)
    found.check()
    assert (got.tokens, got.rows, got.documents) == (730, 15, 15) and not (out / "tokens").exists()


def test_a_pooled_value_is_neither_0_nor_infinite() -> None:
    def pool(values: list[float], how: Pool) -> Features:
        indices = np.zeros(len(values), np.int32)
        given = np.array(values, np.float32)
        zeros = np.zeros(3, np.int32)
        features = Features(np.minimum(np.arange(4), len(values)), indices, given, 5, (3,))
        return pooled(PartRows(features, zeros, zeros, np.ones(3, bool), documents={"doc": np.array([7])}), how)

    tiny = float(np.finfo(np.float32).smallest_subnormal)
    assert pool([tiny], "mean").values.tolist() == [tiny]
    assert pool([3e38, 3e38], "mean").values.tolist() == [pytest.approx(2e38)]
    with pytest.raises(ValueError, match="a feature of document 7 adds up to more than float32 holds"):
        pool([3e38, 3e38], "sum")


@pytest.mark.parametrize(("ids", "kind"), [([1 << 64, 3], "string"), ([1 << 62, 3], "int64"), ([None], "string")])
def test_ids_of_a_harvest_have_a_type_that_holds_them(
    mutual: SAE, tmp_path: Path, ids: list[int | None], kind: str
) -> None:
    folder = harvested(tmp_path / "acts", (200,))
    lines = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    given = [ids[number % len(ids)] for number in range(len(lines))]
    text = "".join(json.dumps({**line, "id": one}) + "\n" for line, one in zip(lines, given, strict=True))
    (folder / "documents.jsonl").write_text(text)
    index = json.loads((folder / "activations.json").read_text())
    index["sources"]["bytes"] = len(text)
    (folder / "activations.json").write_text(json.dumps(index))
    made(mutual, open_activations(folder), tmp_path / "features")
    column = table(tmp_path / "features/documents").column("id")
    assert str(column.type) == kind
    assert column.to_pylist() == [str(one) if kind == "string" and one is not None else one for one in given]


def test_values_are_rounded_to_float16(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(300)
    made(mutual, plain(tmp_path, x), tmp_path / "f", values="float16")
    expected, rows = mutual.encode(x), table(tmp_path / "f" / "tokens")
    rounded = dataclasses.replace(expected, values=expected.values.astype(np.float16).astype(np.float32))
    assert_same(features_of(rows), rounded)
    assert rows.schema.field("values").type == pa.list_(pa.float16())


def test_the_index_names_the_sae_and_each_file(placed: SAE, tmp_path: Path) -> None:
    folder, out = harvested(tmp_path / "acts", (100,), hook="layer.1"), tmp_path / "f"
    made(placed, open_activations(folder), out, part=50, values="float16")
    index = json.loads((out / "features.json").read_text())
    manifest = placed.manifest
    expected = {
        "format_version": 2,
        "architecture": dataclasses.asdict(manifest.architecture),
        "allocation": manifest.allocation and dataclasses.asdict(manifest.allocation),
        "model": "tiny",
        "hook": "layer.1",
        "weights_sha256": manifest.files[WEIGHTS].sha256,
        "rule": "served",
        "values": "float16",
        "per": "token",
        "source": {"activations": str(folder), "rows": 100},
        "tokens": 100,
        "documents": 2,
    }
    assert {name: index[name] for name in expected} == expected
    files = [name for part in index["parts"] for name in part["files"]]
    assert files == [f"{kind}/part-0000{number}.parquet" for number in (0, 1) for kind in ("tokens", "documents")]
    for part in index["parts"]:
        for name, one in part["files"].items():
            assert one == dataclasses.asdict(bundle.record(out / name))


def test_activations_are_read_in_pieces(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = plain(tmp_path, make_x(9_000))
    pieces: list[int] = []
    read = activations.slice

    def recorded(begin: int, end: int) -> NDArray[np.float32]:
        pieces.append(end - begin)
        return read(begin, end)

    monkeypatch.setattr(activations, "slice", recorded)
    made(mutual, activations, tmp_path / "f", part=9_000)
    assert max(pieces) <= 4_096 and sum(pieces) == 3 * 9_000  # to plan, to compare, to encode


def test_a_token_without_features_has_an_empty_row(mutual: SAE, tmp_path: Path) -> None:
    x = 3 * make_x(3)
    x[1] = make_weights(150, "mutual")["b_dec"]  # z = relu(b_enc), below every threshold
    made(mutual, plain(tmp_path, x), tmp_path / "f")
    rows = table(tmp_path / "f" / "tokens").to_pylist()
    assert (rows[1]["indices"], rows[1]["values"]) == ([], [])
    assert rows[0]["indices"] and rows[2]["indices"]


def test_parts_are_the_same_whatever_order_and_process_makes_them(mutual: SAE, tmp_path: Path) -> None:
    activations = open_activations(harvested(tmp_path / "acts", (630,)))

    def backwards(task: Task, numbers: Any) -> Any:
        for number in reversed(numbers):
            pickle.loads(pickle.dumps(task))(number)
            yield number

    made(mutual, activations, tmp_path / "one", part=220)
    made(mutual, activations, tmp_path / "other", part=220, engine=backwards)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_an_extraction_goes_on_where_it_broke_off(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, out = open_activations(harvested(tmp_path / "acts", (630,))), tmp_path / "f"

    def breaks_off(task: Task, numbers: Any) -> Any:
        task(numbers[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(mutual, activations, out, part=220, engine=breaks_off)
    assert {path.name for path in out.iterdir()} == {"extract.json", "tokens", "documents"}
    ran: list[int] = []

    def recorded(task: Task, numbers: Any) -> Any:
        ran.extend(numbers)
        return local(task, numbers)

    made(mutual, activations, out, part=220, engine=recorded)
    assert ran == [0, 2]
    made(mutual, activations, tmp_path / "whole", part=220)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped", "other", "foreign", "empty", "link"])
def test_a_part_that_is_not_whole_is_made_again(mutual: SAE, tmp_path: Path, harm: str) -> None:
    activations, out = open_activations(harvested(tmp_path / "acts", (630,))), tmp_path / "f"
    made(mutual, activations, out, part=220)
    before, path = contents(out), out / "tokens" / "part-00001.parquet"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    if harm == "gone":
        path.unlink()
    elif harm == "link":  # which read_features refuses
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "other":
        shutil.copy(out / "tokens" / "part-00000.parquet", path)
    elif harm == "foreign":
        pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    else:
        path.write_bytes({"cut": bytes(raw[:-7]), "flipped": bytes(raw), "empty": b""}[harm])
    made(mutual, activations, out, part=220)
    assert contents(out) == before and not path.is_symlink()


def test_a_part_of_which_a_byte_was_altered_anywhere_is_not_whole(mutual: SAE, tmp_path: Path) -> None:
    """Checksums of pages do not cover the footer, in which a flipped bit may give a column another type or name."""
    source, out = ArraySource(mutual, harvested(tmp_path / "acts", (30,))), tmp_path / "f"
    extract(source, out)
    task = MakeParts(source, planned(source), out)
    for path in (out / "tokens" / "part-00000.parquet", out / "documents" / "part-00000.parquet"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 67):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            assert not task.is_done(0), f"{path}: byte {place}"
        path.write_bytes(whole)
    assert task.is_done(0)


def test_parts_that_lost_their_plan_do_not_stay_beside_others(mutual: SAE, tmp_path: Path) -> None:
    activations, out = open_activations(harvested(tmp_path / "acts", (630,))), tmp_path / "f"
    made(mutual, activations, out, part=100)
    (out / "extract.json").unlink()
    (out / "tokens" / ".part-00001.parquet.0123abcd.partial.parquet").touch()  # a killed writer's
    made(mutual, activations, out, part=220, per="document")
    made(mutual, activations, tmp_path / "whole", part=220, per="document")
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / "tokens").exists()


def test_a_folder_of_another_extraction_is_refused_and_force_replaces_it(
    placed: SAE, mutual: SAE, tmp_path: Path
) -> None:
    activations, out = open_activations(harvested(tmp_path / "acts", (100,))), tmp_path / "f"
    made(mutual, activations, out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"f was begun with values float24, now it is float16; use another folder or"):
        made(mutual, activations, out, values="float16")
    with pytest.raises(ValueError, match=r"f was begun with hook null, now it is layer\.1; use another folder or --f"):
        made(placed, activations, out)
    other = open_activations(harvested(tmp_path / "more", (150,)))
    with pytest.raises(ValueError, match=r"f was begun with activations .*acts, now it is .*more; use another folder"):
        made(mutual, other, out)
    assert contents(out) == before
    made(mutual, other, out, force=True)
    made(mutual, other, tmp_path / "new")
    assert contents(out) == contents(tmp_path / "new")


def test_activations_that_changed_are_refused(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(300)
    activations, out = plain(tmp_path, x), tmp_path / "f"

    def changes(task: Task, numbers: Any) -> Any:
        task(numbers[0])
        stored = np.lib.format.open_memmap(tmp_path / "x.npy", mode="r+")
        stored[150, 3] += 1
        stored.flush()
        yield from local(task, numbers[1:])

    with pytest.raises(ValueError, match=r"x\.npy: rows 100 to 200 changed since the plan was made; extract into"):
        made(mutual, activations, out, part=100, engine=changes)
    with pytest.raises(ValueError, match=r"f was begun with other contents in part 1, rows 100 to 200; use another"):
        made(mutual, activations, out, part=100)


def test_a_plan_without_parts_binds_nobody(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(300)
    x[7] *= 1e6
    activations, out = plain(tmp_path, x), tmp_path / "f"
    with pytest.raises(
        ValueError, match=r"the token at position 7 of document 0 has a value of .*, too large for floa"
    ):
        made(mutual, activations, out, values="float16")
    assert not out.exists()
    assert made(mutual, activations, out, values="float32").tokens == 300


def test_two_runs_in_one_folder_are_refused(mutual: SAE, tmp_path: Path) -> None:
    activations, out = plain(tmp_path, make_x(30)), tmp_path / "f"
    out.mkdir()
    with lock(out), pytest.raises(ValueError, match=r"another run is writing to .*f; wait for its end, or name anot"):
        made(mutual, activations, out)
    assert made(mutual, activations, out).tokens == 30


@pytest.mark.parametrize("name", ["notes.txt", "tokens/notes.txt", "documents/part-1.parquet", "other/x"])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_holds_other_things_is_refused(mutual: SAE, tmp_path: Path, name: str, force: bool) -> None:
    activations, out = plain(tmp_path, make_x(30)), tmp_path / "f"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    held = name if name != "other/x" else "other"
    with pytest.raises(FileExistsError, match=f"f holds {held}, which extract did not write; name another output"):
        made(mutual, activations, out, force=force)
    assert (out / name).read_text() == "mine"


def test_arguments_are_checked_before_any_work(placed: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = ArraySource(placed, plain(tmp_path, make_x(3)))
    monkeypatch.setattr(ArraySource, "plan", lambda _: pytest.fail("the activations were read"))
    for (name, value), message in {
        ("rule", "both"): r"rule must be 'served' or 'batch', got 'both'",
        ("values", "int8"): r"values must be 'float24' or 'float32' or 'float16', got 'int8'",
        ("per", "text"): r"per must be 'token' or 'document', got 'text'",
        ("pool", "min"): r"pool must be 'max' or 'mean' or 'sum', got 'min'",
    }.items():
        with pytest.raises(ValueError, match=message):
            extract(good, tmp_path / "f", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^the output - would be standard output, which is not supported; name"):
        extract(good, Path("-"))
    with pytest.raises(ValueError, match=r"f\.parquet ends in \.parquet, but features are a folder of Parquet files;"):
        extract(good, tmp_path / "f.parquet")
    with pytest.raises(FileExistsError, match=r"x\.npy is a file; name a folder"):
        extract(good, tmp_path / "x.npy")
    monkeypatch.setattr(extras, "missing", lambda extra: ["pyarrow"] if extra == "extract" else [])
    with pytest.raises(ImportError, match=r"pyarrow not installed; run: pip install 'sae-runtime\[extract\]'"):
        extract(good, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_features_per_document_need_documents(mutual: SAE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.npy does not know its documents; harvest the activations from text, or"):
        made(mutual, plain(tmp_path, make_x(3)), tmp_path / "f", per="document")
    assert not (tmp_path / "f").exists()


def test_activations_of_another_source_are_refused(placed: SAE, tmp_path: Path) -> None:
    narrow = plain(tmp_path, np.zeros((3, 7), np.float32))
    with pytest.raises(ValueError, match=r"x\.npy: activations have d_in 7, this SAE expects 24 \(tiny, layer\.1\); "):
        ArraySource(placed, narrow)
    other = open_activations(harvested(tmp_path / "other", (50,), model="big", hook="layer.2"))
    with pytest.raises(ValueError, match=r"other: activations come from model 'big', this SAE was fitted on 'tiny'; "):
        ArraySource(placed, other)
    extract(ArraySource(placed, other, any_source=True), tmp_path / "f", values="float32")
    assert_same(features_of(table(tmp_path / "f" / "tokens")), placed.encode(make_x(50)))
    with pytest.raises(ValueError, match=r"x\.npy holds no rows; name activations that hold some"):
        ArraySource(placed, plain(tmp_path, make_x(0)))


def test_a_bad_row_is_named_by_its_number(mutual: SAE, tmp_path: Path) -> None:
    x = make_x(5_000)
    x[4_500, 3] = np.nan
    with pytest.raises(ValueError, match=r"x\.npy: row 4500 holds NaN or Inf"):
        made(mutual, plain(tmp_path, x), tmp_path / "f")
    assert not (tmp_path / "f").exists()
    x[4_500] = 3e38 * np.sign(make_weights(150, "mutual")["W_enc"][:, 0])
    with pytest.raises(ValueError, match=r"x\.npy, from row 4000 on: row 500 of the activations is so large that its"):
        made(mutual, plain(tmp_path, x), tmp_path / "f")


def test_a_task_pickles_with_whole_paths(mutual: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvested(tmp_path / "acts", (120,))
    monkeypatch.chdir(tmp_path)
    source = ArraySource(mutual, open_activations("acts"), part=50)
    plan = source.plan()
    facts = {**plan.facts, "per": "token", "pool": None, "rule": "served", "values": "float24"}
    pickled = pickle.dumps(MakeParts(source, dataclasses.replace(plan, facts=facts), Path("f")))
    monkeypatch.chdir("/")
    pickle.loads(pickled)(1)
    assert [path.name for path in (tmp_path / "f" / "tokens").iterdir()] == ["part-00001.parquet"]
