"""What a site says of its model: inputs, SAEs, vectors, answers, and why a page cannot run one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy, some_texts
from small_tokenizers import save_tokenizer
from word_model import deploy_words

from sae_runtime import Model, load_model
from sae_runtime.browser.site import model_facts, model_part
from sae_runtime.browser.site.model_part import write_model_part
from sae_runtime.browser.site.page_tokenizer import tokenizer_facts
from sae_runtime.browser.site.unfit import UnfitForPage
from sae_runtime.exports import int8_weights
from sae_runtime.exports.page_graph import write_page_graph
from sae_runtime.text.tokenizer import open_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = [text for text in some_texts(8, 20) if text]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> dict[str, Path]:
    home, one = tmp_path_factory.mktemp("models"), {"bundle": bundle_of("mutual", D_SAE, 4)}
    return {kind: deploy(home / kind, kind, one) for kind in ("bert", "gpt2")}


def written(model: Model, folder: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"saes": {}, "sentences": SENTENCES, **options}
    told = write_model_part(model, folder, write_graph=write_page_graph, **given)
    assert json.loads((folder / "model.json").read_text()) == told
    return told


def test_vectors(homes: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(homes["bert"])
    told = written(model, tmp_path / "model", saes={model.saes["sae"].spliced.weights: "mutual"})
    assert (told["kind"], told["weights"], told["problem"], told["agreement"]) == ("vectors", "float32", None, None)
    assert told["inputs"]["types"] == {"name": "token_type_ids", "type": "int64"} and told["inputs"]["past"] == []
    (sae,) = told["saes"]
    assert (
        sae["site"] == "mutual" and sae["more"] and sae["edits"] and sae["slots"] == 8 and "sae_slots" in sae["inputs"]
    )
    assert told["vectors"]["pooling"] == ["mean"] and "modules.json" in told["notes"][0] and told["text"] is None
    assert told["sentences"] == SENTENCES and told["limit"] == model.window()
    files = {file.name: file.stat().st_size for file in (tmp_path / "model").iterdir()}
    assert files.keys() == {"model.json", "tokenizer.json", "model.onnx", "weights.0.data"}
    assert told["bytes"] == sum(files.values()) - files["model.json"]
    assert told["external"] == [{"path": "weights.0.data", "file": "weights.0.data", "bytes": files["weights.0.data"]}]


def test_text(homes: dict[str, Path], tmp_path: Path) -> None:
    told = written(load_model(homes["gpt2"]), tmp_path / "model")
    past = told["inputs"]["past"]
    assert told["kind"] == "text" and told["vectors"] is None and len(past) == 4
    assert past[0].keys() == {"input", "present", "type", "shape", "batch", "time"}
    assert past[0]["shape"][2] == 0 and past[0]["present"].startswith("present")
    assert told["text"]["stop_ids"] and told["text"]["limit"] == 64 and told["text"]["chat"] is None
    assert told["special"]["side"] == "right" and told["lower_case"] is False


def test_int8_says_what_it_changes(homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_weights, "_LEAST", 100)
    told = written(load_model(homes["bert"]), tmp_path / "model", int8=True)
    changed = told["agreement"]
    assert told["weights"] == "int8" and changed["texts"] == len(SENTENCES) and changed["next"] is None
    assert 0.5 < changed["jaccard"] < 1 and 0 < changed["values"] < 0.2 and 0.95 < changed["vectors"] <= 1
    text = written(load_model(homes["gpt2"]), tmp_path / "text", int8=True)["agreement"]
    assert 0.5 < text["next"] <= 1 and text["vectors"] is None


def test_a_model_that_is_too_large_is_left_out_unless_asked_for(
    homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_part, "LARGE", 10_000)
    model = load_model(homes["bert"])
    told = written(model, tmp_path / "left")
    assert "browse --in-page" in told["problem"] and [f.name for f in (tmp_path / "left").iterdir()] == ["model.json"]
    assert told["saes"][0]["name"] == "sae" and told["graph"] is None
    assert written(model, tmp_path / "asked", large=True)["problem"] is None
    monkeypatch.setattr(model_part, "LARGEST", 20_000)
    assert "more than a page holds" in written(model, tmp_path / "never", large=True)["problem"]
    assert [f.name for f in (tmp_path / "never").iterdir()] == ["model.json"]


def test_a_tokenizer_that_the_page_does_not_know(
    homes: dict[str, Path], tmp_path: Path, bundle_of: Callable[..., Path]
) -> None:
    home = deploy_words(tmp_path / "words", bundle_of("mutual"))
    told = json.loads((home / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}]}
    (home / "tokenizer.json").write_text(json.dumps(told))
    problem = written(load_model(home), tmp_path / "model")["problem"]
    assert problem.startswith("the tokenizer has the pre-tokenizer UnicodeScripts") and "serve" in problem


@pytest.mark.parametrize("mark", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_bpe_that_marks_places_in_words_is_left_to_a_server(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    model = load_model(homes["bert"])
    told = {"model": {"type": "BPE", "vocab": {}, "merges": [], mark: "</w>"}}
    monkeypatch.setattr(type(model.tokenizer), "to_json", lambda self: json.dumps(told))
    with pytest.raises(UnfitForPage, match="the end of words, which a page does not know"):
        tokenizer_facts(model)


def test_a_graph_of_one_length_alone(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    import onnx

    home = deploy_words(tmp_path / "words", bundle_of("mutual"))
    graph = onnx.load(home / "model_sae.onnx", load_external_data=False)
    for dimension, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, (1, 8), strict=True):
        dimension.dim_value = size
    (home / "model_sae_features.onnx").unlink()
    onnx.save(graph, home / "model_sae.onnx")
    told = written(load_model(home / "model_sae.onnx"), tmp_path / "model")
    assert told["problem"].startswith("the graph takes texts of [1, 8] tokens alone")


def test_a_model_that_makes_no_vectors_still_reads(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    told = written(load_model(deploy_words(tmp_path / "words", bundle_of("mutual"))), tmp_path / "model")
    assert (told["kind"], told["problem"], told["vectors"], told["text"]) == ("other", None, None, None)
    home = deploy(tmp_path / "bert", "bert", {"bundle": bundle_of("mutual", D_SAE)})
    (home / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": ""}]')
    told = written(load_model(home), tmp_path / "dense")
    assert told["kind"] == "other" and told["problem"] is None and "has a module" in told["notes"][-1]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<u>{{ messages[0].content }}</u>", {"before": "<u>", "after": "</u>", "trims": False}),
        ("<u>{{ messages[0].content | trim }}</u>", {"before": "<u>", "after": "</u>", "trims": True}),
        ("{{ messages[0].content }}", {"before": "", "after": "", "trims": False}),
        ("{{ messages[0].content | length }}: {{ messages[0].content }}", None),
        ("{{ messages[0].content }}{{ messages[0].content }}", None),
        ("{{ messages[0].content | upper }}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_chat_templates(tmp_path: Path, template: str, expected: Any) -> None:
    home = save_tokenizer(tmp_path / "tokenizer", "byte level", chat_template=template)

    class Told:
        tokenizer = open_tokenizer(home)

    assert model_facts.chat_facts(Told()) == expected  # type: ignore[arg-type]  # it reads the tokenizer alone


def test_prompts_and_limits_of_vectors(
    tmp_path: Path, bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = deploy(tmp_path / "bert", "bert", {"bundle": bundle_of("mutual", D_SAE)})
    library = "sentence_transformers.models"
    modules = [{"path": path, "type": f"{library}.{path or 'Transformer'}"} for path in ("", "Pooling", "Normalize")]
    (home / "modules.json").write_text(json.dumps(modules))
    (home / "Pooling").mkdir()
    (home / "Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "max"], "include_prompt": false}')
    (home / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    settings = {"prompts": {"query": "w1 w2 "}, "default_prompt_name": "query"}
    (home / "config_sentence_transformers.json").write_text(json.dumps(settings))
    told = written(load_model(home), tmp_path / "model")
    assert told["lower_case"] and told["vectors"] == {
        **{"output": "last_hidden_state", "pooling": ["cls", "max"], "normalise": True, "limit": 12},
        **{"prompt": "w1 w2 ", "prompt_tokens": 3, "include_prompt": False},
    }
    assert np.isfinite(load_model(home).embed("w3")).all()
    monkeypatch.setattr(int8_weights, "_LEAST", 100)
    texts = [*SENTENCES, "W3 W4 W5"]
    changed = written(load_model(home), tmp_path / "int8", int8=True, sentences=texts)["agreement"]
    assert 0.99 < changed["vectors"] <= 1  # of the same tokens: with the prompt, in lower case, cut at the limit
