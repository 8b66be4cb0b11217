"""Texts through a deployed model have the rows of harvest and extract: onnxruntime beside torch, the same files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deployed_model import D_SAE, deploy, ids_of, some_texts, write_tokenizer
from tiny_host import HOOKS, torch_host

from sae_runtime import load, load_model
from sae_runtime.activations.reading import Reading
from sae_runtime.core.features import Features
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.text_source import TextSource
from sae_runtime.train.harvest import HarvestConfig, harvest

TEXTS = ["w1 w2 w3", "", "  ", "w7", "[SEP] w4 <|end|>", "[SEP]", *some_texts(30, 50), "w4 w5"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The transformers folder of a tiny host."""

    def give(kind: str) -> Path:
        home = tmp_path_factory.mktemp("homes") / kind
        torch_host(kind).save_pretrained(home)
        write_tokenizer(home, kind)
        return home

    return give


def table(path: Path) -> Any:
    return pa.concat_tables([pq.read_table(file) for file in sorted(path.glob("*.parquet"))]).combine_chunks()


def dense(rows: Any) -> Any:
    indices, values = (rows[name].chunk(0) for name in ("indices", "values"))
    ends = indices.offsets.to_numpy().astype(np.int64)
    return Features(ends, indices.flatten().to_numpy(), values.flatten().to_numpy(), D_SAE, (len(rows),)).to_dense()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("bert", {"context": 11}),
        ("bert", {"context": 11, "special": True}),
        ("bert", {"ids_field": "ids", "context": 20}),
        ("gpt2", {"context": 16}),
        ("gpt2", {"ids_field": "ids", "context": 7, "special": True}),
    ],
)
def test_texts_have_the_rows_of_a_harvest(
    homes: Callable[[str], Path],
    bundle_of: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    settings: dict[str, Any],
) -> None:
    bundle = bundle_of("mutual", D_SAE)
    path = tmp_path / "a.jsonl"
    records: list[dict[str, Any]] = [{"text": text, "id": f"d{i}"} for i, text in enumerate(TEXTS)]
    if "ids_field" in settings:
        known = [text for text in TEXTS if "[" not in text and "<" not in text]
        records = [
            {"ids": ids_of(text, kind) if i % 2 else ids_of(text, "gpt2"), "id": i} for i, text in enumerate(known)
        ]
    path.write_text("\n".join(map(json.dumps, records)))
    fields = {name: value for name, value in settings.items() if name == "ids_field"} | {"id_field": "id"}
    windows = {"context": 64, **{name: value for name, value in settings.items() if name != "ids_field"}}
    config = HarvestConfig(model=str(homes(kind)), hook=HOOKS[kind], text=(path,), device="cpu", **windows, **fields)
    stored = harvest(config, tmp_path / "acts")
    extract(ArraySource(load(bundle), stored, part=300), tmp_path / "stored", values="float32")
    model = load_model(deploy(tmp_path / "model", kind, {"bundle": bundle}), threads=1)
    reading = Reading(**fields)
    extract(TextSource(model, [path], reading=reading, part=900, **windows), tmp_path / "texts", values="float32")
    one, other = (table(tmp_path / out / "tokens") for out in ("stored", "texts"))
    for column in ("doc", "pos", "token"):
        assert one[column].to_pylist() == other[column].to_pylist(), column
    expected, found = dense(one), dense(other)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    whole = {row["doc"]: row for row in table(tmp_path / "texts" / "documents").to_pylist()}
    for row in table(tmp_path / "stored" / "documents").to_pylist():
        assert {name: whole[row["doc"]][name] for name in row} == row
    assert sum(row["tokens"] for row in whole.values()) == len(one) > 200
