"""Harvests of documents of several formats: their sources, columns of token ids, standard input, and resuming."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tiny_model import END, SPECIALS, WORDS, save_bert, save_gpt2
from transformers import AutoTokenizer

from sae_runtime.activations.documents import Source
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest, harvest_many
from sae_runtime.train.harvest.stream import StreamedRows

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
TEXTS = [" ".join(f"w{i}" for i in RNG.integers(WORDS, size=size)) for size in (30, 4, 1, 17, 9, 40)]
PAD, CLS, SEP = (SPECIALS[name] for name in ("[PAD]", "[CLS]", "[SEP]"))


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save: dict[str, Callable[[Path], Path]] = {"bert": save_bert, "gpt2": save_gpt2}
    return save[request.param](tmp_path_factory.mktemp("models") / request.param)


def config_of(model: Path, text: Path, **settings: Any) -> HarvestConfig:
    sizes: dict[str, Any] = {"context": 12, "batch_tokens": 50, "shard_tokens": 40}
    hook = {"bert": "encoder.layer.1", "gpt2": "h.0"}[model.name]
    return HarvestConfig(model=str(model), hook=hook, text=(text,), device="cpu", **sizes | settings)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def json_lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_row_leads_back_to_its_file_row_and_id(model: Path, tmp_path: Path) -> None:
    lines = [{"body": text, "url": f"u{i}"} for i, text in enumerate([TEXTS[0], " ", *TEXTS[1:3]])]
    first = json_lines(tmp_path / "a.jsonl", lines)
    second = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"url": ["", "v1", "v2"], "body": ["", TEXTS[3], TEXTS[4]]}), second)
    config = config_of(model, first, text_field="body", id_field="url")
    activations = harvest(replace(config, text=(first, second)), tmp_path / "acts")
    expected = [(str(first), 0, "u0"), (str(first), 2, "u2"), (str(first), 3, "u3"), (str(second), 1, "v1")]
    expected.append((str(second), 2, "v2"))
    assert list(activations.sources()) == [(i, Source(*source)) for i, source in enumerate(expected)]
    assert activations.documents is not None and activations.tokens is not None
    tokenizer = AutoTokenizer.from_pretrained(model)
    for number, source in activations.sources():  # the tokens of a document are those of the text that it leads to
        rows = lines if source.file == str(first) else pyarrow.parquet.read_table(second).to_pylist()
        ids = tokenizer(rows[source.row]["body"], add_special_tokens=False)["input_ids"]
        assert activations.tokens[activations.documents == number].tolist() == ids
    assert len(list(harvest(replace(config, tokens=31), tmp_path / "few").sources())) == 2


def test_each_hook_of_a_pass_has_the_sources(tmp_path: Path) -> None:
    config = config_of(save_bert(tmp_path / "bert"), json_lines(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS]))
    configs = {hook: replace(config, hook=hook) for hook in ("encoder.layer.0", "encoder.layer.1")}
    for activations in harvest_many(configs, tmp_path / "acts").values():
        assert [source.row for _, source in activations.sources()] == list(range(len(TEXTS)))


def test_a_document_without_rows_has_no_source(model: Path, tmp_path: Path) -> None:
    nothing = {"bert": "[SEP]", "gpt2": "<|end|>"}[model.name]  # a special token alone
    (tmp_path / "a.txt").write_text(f"w1 w2\n\n{nothing}\n\nw3")
    found = list(harvest(config_of(model, tmp_path / "a.txt"), tmp_path / "acts").sources())
    assert [(number, source.row) for number, source in found] == [(0, 0), (2, 4)]


def _forms(name: str) -> dict[str, Callable[[list[int]], list[int]]]:
    if name == "gpt2":
        return {"bare": list}
    return {
        "bare": list,
        "framed": lambda ids: [CLS, *ids, SEP],
        "begun": lambda ids: [CLS, *ids],
        "padded": lambda ids: [CLS, *ids, SEP] + [PAD] * 50,
        "padded on the left": lambda ids: [PAD] * 7 + [CLS, *ids, SEP],
        "padded alone": lambda ids: ids + [PAD] * 5,
    }


@pytest.mark.parametrize("special", [False, True])
def test_token_ids_give_the_same_bytes_as_their_text(model: Path, tmp_path: Path, special: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = config_of(model, json_lines(tmp_path / "text.jsonl", [{"text": t} for t in TEXTS]), special=special)
    harvest(text, tmp_path / "text")
    for name, form in _forms(model.name).items():
        ids = [{"n": 1, "ids": form(tokenizer(t, add_special_tokens=False)["input_ids"])} for t in TEXTS]
        config = replace(text, text=(json_lines(tmp_path / f"{name}.jsonl", ids),), ids_field="ids")
        harvest(config, tmp_path / name)
        assert shards(tmp_path / name) == shards(tmp_path / "text"), name


def test_a_padding_token_that_also_ends_texts_is_kept(tmp_path: Path) -> None:
    model = save_gpt2(tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    path = json_lines(tmp_path / "a.jsonl", [{"ids": [3, 4, END]}])
    activations = harvest(config_of(model, path, ids_field="ids", special=True), tmp_path / "acts")
    assert activations.tokens is not None and activations.tokens.tolist() == [3, 4, END]


def test_token_ids_that_the_tokenizer_lacks_are_refused_with_their_row(model: Path, tmp_path: Path) -> None:
    largest = {"bert": WORDS + len(SPECIALS) - 1, "gpt2": END}[model.name]
    config = config_of(model, json_lines(tmp_path / "a.jsonl", [{"ids": [largest]}, {"ids": [1, largest + 1]}]))
    with pytest.raises(
        ValueError, match=f"a.jsonl, line 2: token id {largest + 1}, the tokenizer has .* to {largest};"
    ):
        harvest(replace(config, ids_field="ids"), tmp_path / "acts")


class _Piped:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_a_harvest_of_standard_input_goes_on_with_the_same_input_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\n\n".join(TEXTS).encode()
    monkeypatch.setattr(sys, "stdin", _Piped(content))
    config = config_of(model, Path("-"))
    whole = harvest(config, tmp_path / "acts")
    assert [source.file for _, source in whole.sources()] == ["-"] * len(TEXTS)
    before = shards(tmp_path / "acts")
    for name in ("activations.json", "documents.jsonl", "shard-00001.safetensors"):
        (tmp_path / "acts" / name).unlink()
    monkeypatch.setattr(sys, "stdin", _Piped(content + b" w1"))
    with pytest.raises(ValueError, match=r"was begun with text 'standard input \(\d+ bytes, sha256 "):
        harvest(config, tmp_path / "acts")
    monkeypatch.setattr(sys, "stdin", _Piped(content))
    harvest(config, tmp_path / "acts")
    assert shards(tmp_path / "acts") == before


def test_a_file_that_joins_a_folder_changes_the_plan(model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "1.txt").write_text(TEXTS[0])
    config = config_of(model, tmp_path / "texts")
    harvest(config, tmp_path / "acts")
    (tmp_path / "acts" / "activations.json").unlink()
    (tmp_path / "texts" / "2.txt").write_text(TEXTS[1])
    with pytest.raises(ValueError, match=r"was begun with text None, now it is '.*2.txt"):
        harvest(config, tmp_path / "acts")


def test_a_partial_file_of_sources_is_removed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    config = config_of(model, tmp_path / "a.txt")
    harvest(config, tmp_path / "acts")
    (tmp_path / "acts" / "activations.json").unlink()
    (tmp_path / "acts" / ".documents.jsonl.0123abcd.partial.jsonl").write_text("of a killed writer")
    harvest(config, tmp_path / "acts")
    assert not list((tmp_path / "acts").glob(".*"))


def test_training_streams_from_token_ids(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    many = [{"text": t, "ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in TEXTS * 5]
    config = config_of(model, json_lines(tmp_path / "a.jsonl", many))
    harvested = harvest(replace(config, shard_tokens=10**4), tmp_path / "acts").slice(0, 10**4)
    source = StreamedRows(replace(config, ids_field="ids"), 0.2, 0, 1e6)
    assert source.identity["ids_field"] == "ids"
    x, _ = source.take(np.arange(source.units), lambda _: None)
    for rows in (x, *source.held_out()):
        distances = np.abs(rows[:, None] - harvested[None]).max(axis=2).min(axis=1)
        assert len(rows) > 1 and distances.max() < 1e-5, "each row is one of the harvest of the texts"
