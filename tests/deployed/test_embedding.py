"""Vectors of texts, compared with sentence-transformers' own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deployed_model import by_torch, deploy, some_texts
from tiny_host import torch_host

from sae_runtime import Edit, load_model
from sae_runtime.core.gates import positions, spans
from sae_runtime.deployed.notices import AssumedPoolingWarning, LeftOutWarning
from sae_runtime.deployed.pooling import pooled

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TEXTS = ["w1 w2 w3", "", "w7", *some_texts(9, 20), "W4 w5"]
LONG = " ".join(f"w{i % 40}" for i in range(100))
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
LIBRARY = "sentence_transformers.models"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its graph, and with its weights for sentence-transformers."""
    folder = deploy(tmp_path_factory.mktemp("plain") / "model", "bert", [])
    torch_host("bert").save_pretrained(folder)
    return folder


def say(
    folder: Path,
    modes: tuple[str, ...],
    *,
    normalise: bool = False,
    transformer: dict[str, Any] | None = None,
    prompts: dict[str, str] | None = None,
    **pooling: Any,
) -> None:
    """Write sentence-transformers' files."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"{LIBRARY}.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    names = {
        **{"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens"},
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        **{"weightedmean": "pooling_mode_weightedmean_tokens", "lasttoken": "pooling_mode_lasttoken"},
    }
    settings = {"word_embedding_dimension": 24, **{name: mode in modes for mode, name in names.items()}, **pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer or {}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))


def both(folder: Path, texts: list[str], **prompt: Any) -> tuple[Any, Any]:
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return load_model(folder, threads=1).embed(texts, **prompt), theirs.encode(texts, **prompt)


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("cls", "mean", "lasttoken")], ids="-".join)
def test_each_pooling_is_theirs(plain: Path, modes: tuple[str, ...]) -> None:
    say(plain, modes)
    ours, theirs = both(plain, TEXTS)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_normalised_lower_case_and_cut(plain: Path) -> None:
    say(plain, ("mean",), normalise=True, transformer={"max_seq_length": 12, "do_lower_case": True})
    with pytest.warns(LeftOutWarning, match=r"texts are longer than 12 tokens") as told:
        ours, theirs = both(plain, [*TEXTS, LONG, "W1 ẞW2 W3"])
    assert len([one for one in told if one.category is LeftOutWarning]) == 1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("modes", [("mean",), ("cls",), ("weightedmean",)], ids="-".join)
def test_prompts_are_theirs(plain: Path, include: bool, modes: tuple[str, ...]) -> None:
    say(plain, modes, prompts={"query": "w9 w8 ", "bare": ""}, include_prompt=include)
    for prompt in ({"prompt_name": "query"}, {"prompt": "w1 w3 w5 "}, {"prompt_name": "bare"}, {}):
        ours, theirs = both(plain, TEXTS, **prompt)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ValueError, match="has no prompt 'other', it has 'query', 'bare'"):
        load_model(plain).embed("w1", prompt_name="other")
    wrong: Any
    for wrong in ({"prompt": 3}, {"prompt_name": ["query"]}, {"prompt": "a", "prompt_name": "query"}):
        with pytest.raises(ValueError, match="give the text of a prompt, or the name of one"):
            load_model(plain).embed("w1", **wrong)


def test_lower_case_keeps_special_tokens_and_characters_of_spans(
    tmp_path: Path, bundle_of: Callable[..., Path]
) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    torch_host("bert").save_pretrained(folder)
    say(folder, ("mean",), transformer={"do_lower_case": True})
    texts = ["W1 [SEP] w2", "İ İ W3 W4"]
    ours, theirs = both(folder, texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    model, edit = load_model(folder, threads=1), Edit.set(3, 4.0)
    edited = model.embed(texts[1], edit, gate=spans((4, 6)))
    np.testing.assert_array_equal(edited, model.embed(texts[1], edit, gate=positions(3)))


def test_the_length_of_the_folder_goes_before_that_of_the_tokenizer(plain: Path) -> None:
    say(plain, ("mean",), transformer={"max_seq_length": 50}, prompts={"long": "w7 " * 60}, include_prompt=False)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 20}))
    try:
        for prompt in ({}, {"prompt_name": "long"}):
            with pytest.warns(LeftOutWarning):
                ours, theirs = both(plain, [LONG, "w1 w2"], **prompt)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    finally:
        (plain / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_graph_that_pools_gets_prompt_case_and_length_of_the_folder(plain: Path) -> None:
    say(plain, ("cls",), transformer={"max_seq_length": 5, "do_lower_case": True}, prompts={"query": "W9 "})
    theirs = sentence_transformers.SentenceTransformer(str(plain), device="cpu")
    (graph,) = plain.glob("*.onnx")
    host = onnx.load(graph, load_external_data=False)
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT64, [], [0])
    host.graph.initializer.append(zero)
    host.graph.node.append(
        onnx.helper.make_node("Gather", [host.graph.output[0].name, "zero"], ["sentence_embedding"], axis=1)
    )
    del host.graph.output[:]
    host.graph.output.append(onnx.helper.make_tensor_value_info("sentence_embedding", 1, ["batch", 24]))
    pooling = plain / "pooling.onnx"
    onnx.save(host, pooling)
    try:
        model = load_model(pooling, threads=1)
        with pytest.warns(LeftOutWarning):
            ours = model.embed([LONG, "W1 w2", ""], prompt_name="query")
        np.testing.assert_allclose(ours, theirs.encode([LONG, "W1 w2", ""], prompt_name="query"), atol=1e-5)
        say(plain, ("cls",), prompts={"query": "W9 "}, include_prompt=False)
        with pytest.raises(ValueError, match="pools all tokens, and .* leaves those of a prompt out"):
            load_model(pooling).embed("w1", prompt_name="query")
    finally:
        pooling.unlink()


def test_a_folder_that_does_not_say_is_told(plain: Path) -> None:
    for file in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (plain / file).unlink(missing_ok=True)
    with pytest.warns(AssumedPoolingWarning, match=r"has no modules.json, so embed takes the mean"):
        ours, theirs = both(plain, TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_edits_move_the_vector_as_at_a_torch_hook(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    say(folder, ("mean",), normalise=True)
    model, edit = load_model(folder, threads=1), Edit.set(3, 4.0)
    vectors = model.embed(["w1 w2 w3", "w4", "w5 w6"], [[edit], [], [edit]], gate="text")
    gates = {"w1 w2 w3": [0, 1, 1, 1, 0], "w4": [0, 0, 0], "w5 w6": [0, 1, 1, 0]}
    for (text, gate), vector in zip(gates.items(), vectors, strict=True):
        mean = by_torch("bert", text, "mutual", [edit], gate)[1].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert model.embed("w1").shape == (24,)
    assert model.embed([]).shape == (0, 24)


def test_modules_that_are_not_known_are_refused(plain: Path) -> None:
    say(plain, ("mean",))
    modules = json.loads((plain / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": f"{LIBRARY}.Dense"})
    (plain / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="has a module 'Dense'"):
        load_model(plain).embed("w1")


def test_a_model_with_a_head_gives_no_vectors(tmp_path: Path) -> None:
    model = load_model(deploy(tmp_path / "model", "gpt2", []), threads=1)
    with pytest.raises(ValueError, match="no vectors of tokens, last_hidden_state; export the model without its head"):
        model.embed("w1")


def test_padding_that_is_nan_is_nobodys() -> None:
    x = np.full((1, 3, 2), np.nan, np.float32)
    x[0, :2] = [[1, 2], [3, 4]]
    for mode in MODES:
        assert np.isfinite(pooled(x, np.array([[1, 1, 0]]), [mode])).all()
