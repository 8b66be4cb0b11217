"""A corpus through vLLM: each row of the folder is what transformers reads of the same window."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from vllm_bundles import D_SAE
from vllm_processes import MODEL, ROOT, Called, Raised, needs_vllm, settings_of
from vllm_reference import Reference, assert_features_equal

from sae_runtime import Features, read_features

pytestmark = needs_vllm
CONTEXT = 48
TEXTS = [
    (ROOT / "LICENSE").read_text()[3000:4200],
    "A single line.",
    "<|im_start|>user\nWhat is the sun?<|im_end|>\n<|im_start|>assistant\nA star. 🌞",
    "数据 und naïve Wörter, each of several tokens.",
    "x",
]


@pytest.fixture(scope="module")
def engine(vllm_process: Called, reference: Reference) -> Called:
    saes = [{"bundle": reference.bundles[name], "name": name} for name in ("threshold", "layer")]
    vllm_process("start", str(MODEL), settings_of(saes), max_model_len=64, max_num_batched_tokens=64)
    return vllm_process


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "n": len(text)}) + "\n" for text in TEXTS))
    return tmp_path / "a.jsonl"


def read(reference: Reference, text: str, sae: str) -> tuple[list[int], list[tuple[int, int]], NDArray[np.float32]]:
    """The ids of a text's own tokens, their characters, and their features, by transformers."""
    given = reference.tokenizer(text, return_offsets_mapping=True)
    ids = given["input_ids"]
    windows = [ids[begin : begin + CONTEXT] for begin in range(0, len(ids), CONTEXT)]
    rows = [reference.read({"ids": window}, [0], [sae]).features[sae] for window in windows]
    own = [number for number, one in enumerate(ids) if one not in reference.tokenizer.all_special_ids]
    return (
        [ids[number] for number in own],
        [given["offset_mapping"][number] for number in own],
        np.concatenate(rows)[own],
    )


def plain(features: Features) -> dict[str, NDArray[Any]]:
    return {"indptr": features.indptr, "indices": features.indices, "values": features.values}


@pytest.mark.parametrize("sae", ["threshold", "layer"])
def test_each_token_has_the_features_that_transformers_reads(
    engine: Called, reference: Reference, corpus: Path, tmp_path: Path, sae: str
) -> None:
    made = engine("extract", corpus, tmp_path / "f", sae=sae, context=CONTEXT, values="float32")
    stored = read_features(tmp_path / "f")
    rows, truth = stored.table().to_pydict(), [read(reference, text, sae) for text in TEXTS]
    assert made.documents == len(TEXTS) and max(len(ids) for ids, _, _ in truth) > 3 * CONTEXT
    assert rows["token"] == [one for ids, _, _ in truth for one in ids]
    assert list(zip(rows["begin"], rows["end"], strict=True)) == [place for _, places, _ in truth for place in places]
    assert rows["doc"] == [number for number, (ids, _, _) in enumerate(truth) for _ in ids]
    assert_features_equal(plain(stored.features()), np.concatenate([f for _, _, f in truth]), reference.sae(sae))
    described = stored.description
    assert (described["sae"], described["hook"], described["d_sae"]) == (sae, "layers.10", D_SAE)
    assert described["engine"]["dtype"] == "float32" and list(described["host_sha256"]) == ["model.safetensors"]
    assert engine("extract", corpus, tmp_path / "f", sae=sae, context=CONTEXT, values="float32") == made


def test_documents_are_pooled_and_what_cannot_be_done_is_refused(
    engine: Called, reference: Reference, corpus: Path, tmp_path: Path
) -> None:
    engine("extract", corpus, tmp_path / "f", sae="layer", context=CONTEXT, values="float32", per="document")
    truth = np.stack([read(reference, text, "layer")[2].max(axis=0) for text in TEXTS])
    assert_features_equal(plain(read_features(tmp_path / "f").features()), truth, reference.sae("layer"))
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "this LLM has the SAEs threshold, layer; name one of them"),
        ({"sae": "layer", "context": 64}, "the model reads at most 63; give at most these"),
        ({"sae": "layer", "context": CONTEXT}, "f was begun with per document, now it is token; use another folder"),
    ]
    for settings, message in refused:
        with pytest.raises(Raised, match=message):
            engine("extract", corpus, tmp_path / "f", values="float32", **settings)
    assert engine("rpc", "sae_features", ["0"]) == [{"0": {}}]  # nothing is kept
