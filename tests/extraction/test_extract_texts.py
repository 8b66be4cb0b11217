"""Texts to a folder of features, by a deployed model: rows and joins, windows, parts in any order, what is refused."""

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
from word_model import deploy_words, features_of_text, some_words

from sae_runtime import Features, Model, load_model
from sae_runtime.activations import text_files
from sae_runtime.activations.reading import Reading, opened
from sae_runtime.extraction.extract import Extracted, extract
from sae_runtime.extraction.part_rows import Pool
from sae_runtime.extraction.tasks import Task, local
from sae_runtime.extraction.text_source import TextSource

TEXTS = ["w4 w5 w6", " ", "w7", *some_words(12, 20), "w11 w11"]
FIELDS = Reading(id_field="name", columns=("kind", "score", "tags", "none"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    return deploy_words(tmp_path_factory.mktemp("words") / "model", bundle_of("mutual"))


@pytest.fixture
def model(folder: Path) -> Model:
    return load_model(folder, threads=1)


def lines(path: Path) -> Path:
    """The texts as lines of JSON, with a blank line behind each."""
    records = [
        {"text": text, "name": i, "kind": "ab"[i % 2], "score": i / 2 if i % 2 else i, "tags": [i], "none": None}
        for i, text in enumerate(TEXTS)
    ]
    path.write_text("\n\n".join(map(json.dumps, records)))
    return path


def made(model: Model, path: Path, out: Path, *, part: int = 150, per: Any = "token", **settings: Any) -> Extracted:
    run = {name: settings.pop(name) for name in ("engine", "force", "pool") if name in settings}
    source = TextSource(model, [path], part=part, **settings)
    return extract(source, out, per=per, values="float32", **run)


def table(path: Path) -> Any:
    return pa.concat_tables([pq.read_table(file) for file in sorted(path.glob("*.parquet"))]).combine_chunks()


def dense(rows: Any) -> Any:
    indices, values = (rows[name].chunk(0) for name in ("indices", "values"))
    ends = indices.offsets.to_numpy().astype(np.int64)
    found = Features(ends, indices.flatten().to_numpy(), values.flatten().to_numpy(), 150, (len(rows),))
    found.check()
    return found.to_dense()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def close(found: Any, expected: Any) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


def test_each_document_may_have_a_licence_of_its_own(model: Model, tmp_path: Path) -> None:
    path, own = tmp_path / "a.jsonl", ["MIT", 4, None]
    path.write_text("".join(json.dumps({"text": "w4", "licence": licence}) + "\n" for licence in own))
    reading = Reading(columns=("licence",))
    made(model, path, tmp_path / "f", reading=reading)
    assert table(tmp_path / "f" / "documents")["licence"].to_pylist() == ["MIT", "4", None]
    path.write_text(json.dumps({"text": "w4", "licence": 4}) + "\n")
    made(model, path, tmp_path / "g", reading=reading)
    assert table(tmp_path / "g" / "documents").schema.field("licence").type == pa.string()
    with pytest.raises(ValueError, match="exclude one another; give one"):
        made(model, path, tmp_path / "h", reading=reading, licence="CC0")


def test_each_token_has_its_features_and_leads_back_to_its_text(model: Model, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "a.jsonl"), tmp_path / "f"
    got = made(model, path, out, reading=FIELDS, licence="CC0")
    kept = [(i, text) for i, text in enumerate(TEXTS) if text.strip()]
    rows, documents = table(out / "tokens"), table(out / "documents").to_pydict()
    assert close(dense(rows), np.concatenate([features_of_text(text) for _, text in kept]))
    words = [text.split() for _, text in kept]
    assert rows["doc"].to_pylist() == [n for n, own in enumerate(words) for _ in own]
    assert rows["pos"].to_pylist() == [pos for own in words for pos in range(len(own))]
    assert rows["token"].to_pylist() == [int(word[1:]) for own in words for word in own]
    spans = zip(*(rows[name].to_pylist() for name in ("doc", "begin", "end")), strict=True)
    assert [kept[doc][1][begin:end] for doc, begin, end in spans] == [word for own in words for word in own]
    expected = {
        "doc": list(range(len(kept))),
        "file": [str(path)] * len(kept),
        "row": [2 * i for i, _ in kept],
        "id": [i for i, _ in kept],
        "tokens": list(map(len, words)),
        "kind": ["ab"[i % 2] for i, _ in kept],
        "score": [i / 2 if i % 2 else float(i) for i, _ in kept],
        "tags": [f"[{i}]" for i, _ in kept],
        "none": [None] * len(kept),
        "licence": ["CC0"] * len(kept),
        "text": [text for _, text in kept],
    }
    assert documents == expected
    names = pq.read_table(out / "vocabulary.parquet").to_pydict()
    assert dict(zip(names["token"], names["text"], strict=True)) == {i: model.tokenizer.token(i) for i in range(12)}
    index = json.loads((out / "features.json").read_text())
    assert (index["tokens"], index["documents"]) == (got.tokens, got.documents) == (sum(map(len, words)), len(kept))
    assert len(index["parts"]) > 2 and [one["tokens"] for one in index["parts"]] == [
        len(pq.read_table(file)) for file in sorted((out / "tokens").iterdir())
    ]


def test_long_texts_are_cut_into_windows_and_special_tokens_have_rows_if_asked(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w4 w5 w6 w7 w8\n\nw9")
    made(model, tmp_path / "a.txt", tmp_path / "f", context=4, special=True)
    rows = table(tmp_path / "f" / "tokens").to_pydict()
    assert rows["token"] == [1, 4, 5, 2, 1, 6, 7, 2, 1, 8, 2, 1, 9, 2]
    assert rows["pos"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 0, 0, 0]
    assert rows["doc"] == [0] * 11 + [1] * 3
    made(model, tmp_path / "a.txt", tmp_path / "own", context=4)
    rows = table(tmp_path / "own" / "tokens")
    assert rows["token"].to_pylist() == [4, 5, 6, 7, 8, 9]
    assert close(dense(rows), np.concatenate([features_of_text("w4 w5 w6 w7 w8"), features_of_text("w9")]))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
def test_documents_pool_their_own_tokens(model: Model, tmp_path: Path, pool: Pool, special: bool) -> None:
    out = tmp_path / "f"
    made(model, lines(tmp_path / "a.jsonl"), out, per="document", pool=pool, special=special)
    expected = [getattr(np, pool)(features_of_text(text), axis=0) for text in TEXTS if text.strip()]
    assert close(dense(table(out / "documents")), np.stack(expected))
    assert not (out / "tokens").exists()


def test_token_ids_are_read_as_harvest_reads_them(model: Model, tmp_path: Path) -> None:
    texts = [text for text in TEXTS if text.strip()]
    bare = [[int(word[1:]) for word in text.split()] for text in texts]
    framed = [[1, *ids, 2, *[0] * (i % 3)] if i % 2 else ids for i, ids in enumerate(bare)]
    records = [{"ids": ids} for ids in [*framed, [], [0, 0]]]
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, records)))
    made(model, tmp_path / "ids.jsonl", tmp_path / "f", reading=Reading(ids_field="ids"), part=30)
    rows, documents = table(tmp_path / "f" / "tokens"), table(tmp_path / "f" / "documents")
    assert rows["token"].to_pylist() == [number for ids in bare for number in ids]
    assert close(dense(rows), np.concatenate([features_of_text(text) for text in texts]))
    assert rows["begin"].null_count == rows["end"].null_count == len(rows)
    assert documents["tokens"].to_pylist() == [*map(len, bare), 0] and "text" not in documents.column_names
    (tmp_path / "ids.jsonl").write_text('{"ids": [4]}\n{"ids": [12]}')
    with pytest.raises(ValueError, match=r"ids\.jsonl, line 2: token id 12, the tokenizer has ids up to 11; take the"):
        made(model, tmp_path / "ids.jsonl", tmp_path / "g", reading=Reading(ids_field="ids"))


def backwards(task: Task, numbers: Any) -> Any:
    """Each part in another process' copy, the last one first."""
    for number in reversed(numbers):
        pickle.loads(pickle.dumps(task))(number)
        yield number


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_parts_are_the_same_whatever_order_makes_them(model: Model, tmp_path: Path, kind: str) -> None:
    path, reading = lines(tmp_path / "a.jsonl"), Reading(columns=("kind",))
    if kind != "jsonl":
        records = [json.loads(line) for line in path.read_text().split("\n\n")]
        path = tmp_path / f"a.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
        else:
            path.write_text("text,kind\n" + "".join(f"{one['text']},{one['kind']}\n" for one in records))
    made(model, path, tmp_path / "one", reading=reading)
    made(model, path, tmp_path / "other", reading=reading, engine=backwards)
    assert contents(tmp_path / "one") == contents(tmp_path / "other") and len(contents(tmp_path / "one")) > 8


def test_a_run_over_all_parts_opens_each_file_twice(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = lines(tmp_path / "a.jsonl"), list[Path]()

    def recorded(path: Path, reading: Reading) -> Any:
        asked.append(path)
        return opened(path, reading)

    monkeypatch.setattr(text_files, "opened", recorded)
    made(model, path, tmp_path / "f")
    assert asked == [path, path]  # for the plan, and for the parts


def test_an_extraction_goes_on_where_it_broke_off(model: Model, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "a.jsonl"), tmp_path / "f"

    def breaks_off(task: Task, numbers: Any) -> Any:
        task(numbers[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(model, path, out, engine=breaks_off)
    ran: list[int] = []

    def recorded(task: Task, numbers: Any) -> Any:
        ran.extend(numbers)
        return local(task, numbers)

    made(model, path, out, engine=recorded)
    made(model, path, tmp_path / "whole")
    assert 1 not in ran and contents(out) == contents(tmp_path / "whole")


def test_a_file_that_changed_is_refused(model: Model, tmp_path: Path) -> None:
    path, out = lines(tmp_path / "a.jsonl"), tmp_path / "f"
    before = path.read_text()

    def changes(task: Task, numbers: Any) -> Any:
        task(numbers[0])
        path.write_text(before.replace("w11 w11", "w11 w10"))
        yield from local(pickle.loads(pickle.dumps(task)), numbers[1:])  # which reads anew

    with pytest.raises(ValueError, match=r"the texts of part \d \(from .*a\.jsonl, line \d+ on\) changed since the pl"):
        made(model, path, out, engine=changes)
    with pytest.raises(
        ValueError, match=r"f was begun with .*a\.jsonl \(size \d+, sha256 \w{12}\.\.\.\), now it is \("
    ):
        made(model, path, out)
    path.rename(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"f was begun with .*a\.jsonl \(size .*\), now it is left out; use"):
        made(model, tmp_path / "b.jsonl", out)
    path.write_text(before)
    source = TextSource(model, [path, tmp_path / "b.jsonl"], part=150)
    with pytest.raises(ValueError, match=r"f was begun with .*b\.jsonl left out, now it is \(size"):
        extract(source, out, values="float32")
    with pytest.raises(ValueError, match=r"f was begun with context 128, now it is 9; use another folder or --force"):
        made(model, path, out, context=9)
    assert made(model, path, out).documents == 15
    both = TextSource(model, [path, tmp_path / "b.jsonl"], part=150)
    extract(both, tmp_path / "both", values="float32")
    turned = TextSource(model, [tmp_path / "b.jsonl", path], part=150)
    with pytest.raises(ValueError, match=r"both was begun with its files in another order; use another folder or --f"):
        extract(turned, tmp_path / "both", values="float32")
    (out / "extract.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"extract\.json is not readable JSON .*; extract into another folder, or with"
    ):
        made(model, path, out)
    assert made(model, path, out, force=True).documents == 15


def test_names_of_files_are_those_that_were_given_wherever_a_part_is_made(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute ones below the folder of the process stay absolute, and relative ones relative."""
    path = lines(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("a.jsonl"), Path("../") / tmp_path.name / "a.jsonl"):
        source = TextSource(model, [given], part=150)
        part = source.plan().parts[1]
        monkeypatch.chdir("/")
        documents = pickle.loads(pickle.dumps(source)).rows(part).documents
        monkeypatch.chdir(tmp_path)
        assert documents is not None and set(documents["file"]) == {str(given)}


def test_a_model_that_changed_is_refused(
    model: Model, tmp_path: Path, bundle_of: Callable[..., Path], folder: Path
) -> None:
    path, out = lines(tmp_path / "a.jsonl"), tmp_path / "f"
    made(model, path, out)
    other = load_model(deploy_words(tmp_path / "model", bundle_of("feature")))
    with pytest.raises(ValueError, match=r"f was begun with allocation kind mutual, now it is feature; use another"):
        made(other, path, out)
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / "model"))
    vocabulary = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(vocabulary.replace('"w4"', '"W4"'))
    with pytest.raises(
        ValueError, match=r"f was begun with tokenizer_sha256 tokenizer\.json \w{12}\.\.\., now it is \w"
    ):
        made(load_model(copy), path, out)


def test_what_cannot_be_read_is_refused(
    model: Model, tmp_path: Path, bundle_of: Callable[..., Path], folder: Path
) -> None:
    path, out = lines(tmp_path / "a.jsonl"), tmp_path / "f"
    with pytest.raises(ValueError, match=r"- is standard input, which cannot be read again when an extraction goes on"):
        TextSource(model, [Path("-")])
    (tmp_path / "none.txt").write_text("\n \n\n")
    with pytest.raises(ValueError, match=r"none\.txt holds no text; name files that hold some"):
        made(model, tmp_path / "none.txt", out)
    with pytest.raises(FileNotFoundError, match=r"the text file .*no\.txt does not exist; check its path"):
        TextSource(model, [tmp_path / "no.txt"])
    with pytest.raises(
        ValueError, match=r"a\.jsonl, line 1: it has no field 'topic'; it has 'text', 'name', 'kind', '"
    ):
        made(model, path, out, reading=Reading(columns=("topic",)))
    with pytest.raises(ValueError, match=r"'id' cannot be a column that is kept, .*; give it as --id-field"):
        made(model, path, out, reading=Reading(columns=("id",)))
    for name in ("text", "indices", "doc"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be a column that is kept, since features have a column"):
            made(model, path, out, reading=Reading(columns=(name,)))
    with pytest.raises(ValueError, match=r"has no SAE 'other' that gives features; it has sae"):
        TextSource(model, [path], sae="other")
    two = load_model(deploy_words(tmp_path / "two", bundle_of("mutual"), names=("a", "b")))
    with pytest.raises(ValueError, match=r"has the SAEs a, b; name one of them"):
        TextSource(two, [path])
    made(two, path, tmp_path / "b", sae="b")
    assert json.loads((tmp_path / "b" / "features.json").read_text())["sae"] == "b"
    settings = Path(shutil.copytree(folder, tmp_path / "short")) / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 7}))
    short = load_model(tmp_path / "short")
    assert TextSource(short, [path]).context == 7
    with pytest.raises(ValueError, match=r"context is 8 tokens, and the model reads at most 7; give at most these"):
        TextSource(short, [path], context=8)
    with pytest.raises(ValueError, match=r"context is 2 tokens, of which special tokens take 2; give at least 3"):
        made(model, path, out, context=2)
    assert not out.exists()


def test_half_a_character_in_a_column_or_a_name_is_escaped(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a\udce4.jsonl"
    path.write_text('{"text": "w4", "name": "x\\ud800", "kind": ["\\udfff"]}\n{"text": "w5", "name": "y", "kind": "é"}')
    made(model, path, tmp_path / "f", reading=Reading(id_field="name", columns=("kind",)))
    documents = table(tmp_path / "f" / "documents").to_pydict()
    assert documents["id"] == ["x\\ud800", "y"] and documents["kind"] == ['["\\udfff"]', "é"]
    assert documents["file"] == [str(tmp_path / "a\\udce4.jsonl")] * 2
    assert made(model, path, tmp_path / "f", reading=Reading(id_field="name", columns=("kind",))).documents == 2


def test_texts_may_be_left_out_and_documents_may_have_no_tokens(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w4"}\n{"text": "[SEP]"}\n{"text": "w5 w5"}')
    made(model, tmp_path / "a.jsonl", tmp_path / "f", keep_text=False)
    documents = table(tmp_path / "f" / "documents")
    assert documents.column_names == ["doc", "file", "row", "id", "tokens"]
    assert documents["tokens"].to_pylist() == [1, 0, 2] and documents["id"].null_count == 3
    assert table(tmp_path / "f" / "tokens")["doc"].to_pylist() == [0, 2, 2]
    (tmp_path / "b.jsonl").write_text('{"text": "[SEP]"}')
    assert made(model, tmp_path / "b.jsonl", tmp_path / "g").tokens == 0
