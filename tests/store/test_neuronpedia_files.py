"""A store in Neuronpedia's format: the names that SAEDashboard writes, and the store's numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_store import context, feature, never_active, token, write_store

from sae_runtime import open_store
from sae_runtime.labelling.explanation_files import read_explanations
from sae_runtime.labelling.explanations import Explanation
from sae_runtime.store.neuronpedia_files import Place, find_place, tokens_of, write_neuronpedia
from sae_runtime.store.open_store import Store

PLACE = Place(model="gpt2-small", layer=6, source_set="res-x")
LOGIT = {"token": 1, "text": " file", "logit": 0.1}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    one = feature(
        [context("Open the file, now", "file,", 4.0), context("a cake", "cake", 1.5, band=1)],
        top_tokens=[token("file")],
        together=[{"feature": 2, "value": 0.3}],
        promoted=[LOGIT],
        suppressed=[LOGIT | {"logit": -0.2}],
    )
    folder = write_store(tmp_path / "store", [one, never_active(), feature()])
    (folder / "labels.jsonl").write_text('{"feature": 0, "label": "文件"}\n', encoding="utf-8")
    return open_store(folder)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files_have_what_the_store_has(store: Store, tmp_path: Path) -> None:
    assert write_neuronpedia(store, tmp_path / "out", PLACE, dataset="docs") == 2
    batch = read(tmp_path / "out/batch-0.json")
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("gpt2-small", 6, "res-x")
    page = batch["features"][0]
    assert (page["feature_index"], page["frac_nonzero"], page["dataset"]) == (0, 0.01, "docs")
    assert (page["pos_str"], page["pos_values"], page["neg_values"]) == ([" file"], [0.1], [-0.2])
    assert page["freq_hist_data_bar_values"] == [0.5, 1.5, 2.5, 3.5]
    assert page["freq_hist_data_bar_heights"] == [4, 3, 2, 1]
    assert (page["correlated_features_indices"], page["correlated_features_pearson"]) == ([2], [0.3])
    assert page["activations"] == [
        {
            **{"bin_min": -1.0, "bin_max": 4.0, "bin_contains": -1.0, "qualifying_token_index": 2},
            **{"tokens": ["Open", " the", " file,", " now"], "values": [0.0, 0.0, 4.0, 0.0]},
        },
        {
            **{"bin_min": 0.5, "bin_max": 2.0, "bin_contains": 0.005, "qualifying_token_index": 1},
            **{"tokens": ["a", " cake"], "values": [0.0, 1.5]},
        },
    ]
    skipped = read(tmp_path / "out/skipped_indexes.json")
    assert (skipped["skipped_indexes"], skipped["layer"], skipped["log_sparsity"]) == ([1], "6", -3)
    settings = read(tmp_path / "out/run_settings.json")
    assert (settings["model_id"], settings["n_prompts_total"], settings["top_acts_group_size"]) == ("gpt2-small", 10, 2)
    label = Explanation(feature=0, text="文件", model="gpt2-small", place="6-res-x")
    assert list(read_explanations(tmp_path / "out/explanations.jsonl")) == [label]


def test_many_features_stand_in_batches_of_128(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "store", [feature() for _ in range(130)]))
    write_neuronpedia(store, tmp_path / "out", PLACE)
    sizes = [len(read(tmp_path / f"out/batch-{number}.json")["features"]) for number in (0, 1)]
    assert sizes == [128, 2]


def test_only_an_earlier_folder_is_replaced(store: Store, tmp_path: Path) -> None:
    write_neuronpedia(store, tmp_path / "out", PLACE)
    with pytest.raises(FileExistsError, match="--force"):
        write_neuronpedia(store, tmp_path / "out", PLACE)
    write_neuronpedia(store, tmp_path / "out", PLACE, force=True)
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds mine\.txt"):
        write_neuronpedia(store, tmp_path / "out", PLACE, force=True)


def test_tokens_joined_are_the_text(store: Store) -> None:
    words = store.feature(0).contexts[0]
    assert "".join(tokens_of(words)) == words.text
    split = vars(words) | {"text": "a😀 b", "offsets": np.array([[0, 1], [1, 2], [1, 2], [3, 4]], np.int32)}
    assert tokens_of(type(words)(**split)) == ["a", "😀", "", " b"]
    named = vars(words) | {"text": None, "offsets": None}
    assert tokens_of(type(words)(**named)) == words.tokens


@pytest.mark.parametrize(
    ("hook", "given", "expected"),
    [
        ("blocks.6.hook_resid_pre", {}, "gpt2 6-store"),
        ("input:model.layers.12.mlp", {"layer": None}, "gpt2 12-store"),
        ("encoder.layer.3", {"model": "minilm", "source_set": "res-x"}, "minilm 3-res-x"),
        ("tensor:hidden", {"layer": 0}, "gpt2 0-store"),
        ("tensor:hidden", {}, "the layer is not clear"),
        ("encoder.layer.3", {"layer": -1}, "--layer is a number from 0 on"),
        ("encoder.layer.3", {"source_set": "a/b"}, "give --source-set"),
        ("encoder.layer.3", {"model": ""}, "give --model"),
    ],
)
def test_a_place_follows_from_the_store(hook: str, given: dict[str, Any], expected: str, tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "store", [feature()], hook=hook))
    arguments = {"model": None, "layer": None, "source_set": None} | given
    try:
        place = find_place(store, **arguments)
        assert f"{place.model} {place.source}" == expected
    except ValueError as error:
        assert expected in str(error)


def test_a_store_without_a_model_needs_its_name(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "store", [feature()], model=None))
    with pytest.raises(ValueError, match="does not know its model"):
        find_place(store, None, 6, "x")
