"""A corpus through a stand-in for vLLM's `LLM`: the folder is the one that `extract` writes with the deployed model."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_llm import MadeLLM, stand_in_for_vllm
from word_model import deploy_words, some_words

from sae_runtime import Features, load_model, open_store, read_features
from sae_runtime.activations.reading import Reading
from sae_runtime.extraction import extract as extraction
from sae_runtime.extraction.text_source import TextSource
from sae_runtime.serve.vllm.corpus import CorpusSource, extract
from sae_runtime.store.build_store import build_store

TEXTS = ["w4 w5 w6", " ", "w7", *some_words(12, 20), "w11 w11"]
FIELDS = Reading(id_field="name", columns=("kind",))


@pytest.fixture(scope="module")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("mutual")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    return deploy_words(tmp_path_factory.mktemp("words") / "model", bundle)


@pytest.fixture
def llm(folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> MadeLLM:
    stand_in_for_vllm(monkeypatch)
    return MadeLLM(folder, sae_at(bundle))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    records = [{"text": text, "name": i, "kind": "ab"[i % 2]} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    return tmp_path / "a.jsonl"


def sae_at(*bundles: Path, **limits: int) -> dict[str, Any]:
    names = ("sae", "second")
    saes = [{"bundle": str(path), "hook": "layer.0", "name": name} for path, name in zip(bundles, names, strict=False)]
    return {"sae": {"saes": saes, "limits": limits}}


def assert_same(one: Path, other: Path, *, differing: Any = frozenset()) -> None:
    """Two folders of features have the same rows, up to rounding, and the same facts but for some."""
    a, b = read_features(one), read_features(other)
    assert [path.relative_to(one) for path in sorted(one.rglob("*"))] == [
        path.relative_to(other) for path in sorted(other.rglob("*"))
    ]
    for left, right in zip(a.tables(), b.tables(), strict=True):
        columns = [name for name in left.column_names if name != "values"]
        assert left.schema == right.schema and left.select(columns).equals(right.select(columns))
    close(a.features(), b.features())
    for name in ("vocabulary.parquet", *(f"documents/{path.name}" for path in (one / "documents").iterdir())):
        if a.per == "token":
            assert (one / name).read_bytes() == (other / name).read_bytes() or "documents" in name
            assert pq.read_table(one / name).equals(pq.read_table(other / name))
    for name in ("features.json", "extract.json"):
        left, right = (json.loads((path / name).read_text()) for path in (one, other))
        left, right = left.get("facts", left), right.get("facts", right)
        keys = {key for key in {**left, **right} if left.get(key) != right.get(key)}
        assert keys - {"parts", "plan_sha256"} == differing


def close(found: Features, expected: Features) -> None:
    assert np.array_equal(found.indices, expected.indices) and np.array_equal(found.indptr, expected.indptr)
    assert np.abs(found.values - expected.values).max() <= 1e-5 * expected.values.max()


OF_THE_HOST = {"graph_sha256", "host_sha256", "engine"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"context": 4, "special": True, "licence": "CC0", "keep_text": False},
        {"per": "document", "pool": "mean", "reading": Reading(id_field="name")},
    ],
)
def test_the_folder_is_that_of_the_deployed_model(
    llm: MadeLLM, folder: Path, texts: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"reading": FIELDS, "values": "float32", **settings}
    made = extract(llm, texts, tmp_path / "vllm", **settings)
    of_source = {name: settings.pop(name) for name in list(settings) if name not in ("per", "pool", "values")}
    source = TextSource(load_model(folder, threads=1), [texts], **of_source)
    expected = extraction.extract(source, tmp_path / "deployed", **settings)
    assert (made.tokens, made.documents, made.matches) == (expected.tokens, expected.documents, expected.matches)
    assert_same(tmp_path / "vllm", tmp_path / "deployed", differing=OF_THE_HOST)
    described = read_features(tmp_path / "vllm").description
    assert described["engine"] == {
        **{"name": "vllm", "dtype": "float32", "quantization": None, "kv_cache_dtype": "auto"}
    }


def test_token_ids_and_the_feature_store(llm: MadeLLM, folder: Path, bundle: Path, tmp_path: Path) -> None:
    ids = [[int(word[1:]) for word in text.split()] for text in TEXTS]
    (tmp_path / "ids.jsonl").write_text("\n".join(json.dumps({"ids": own}) for own in ids if own))
    reading = Reading(ids_field="ids")
    extract(llm, [str(tmp_path / "ids.jsonl")], str(tmp_path / "vllm"), reading=reading, values="float32")
    source = TextSource(load_model(folder, threads=1), [tmp_path / "ids.jsonl"], reading=reading)
    extraction.extract(source, tmp_path / "deployed", values="float32")
    assert_same(tmp_path / "vllm", tmp_path / "deployed", differing=OF_THE_HOST)
    build_store(tmp_path / "vllm", tmp_path / "store", sae=bundle)
    density = (read_features(tmp_path / "vllm").features().to_dense() > 0).mean(axis=0)
    assert np.allclose(open_store(tmp_path / "store").density, density, rtol=1e-6)


def test_an_interrupted_run_goes_on_and_another_setting_is_refused(
    llm: MadeLLM, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f"

    def write(**settings: Any) -> Any:
        return extraction.extract(CorpusSource(llm, [texts], part=150, **settings), out)

    read = llm.generate

    def breaks(*given: Any, **named: Any) -> Any:
        if len(llm.prompts) > 6:
            raise KeyboardInterrupt
        return read(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(llm, "generate", breaks)
        with pytest.raises(KeyboardInterrupt):
            write()
    before = {path: path.read_bytes() for path in out.glob("*/*.parquet")}
    done, llm.prompts = len(llm.prompts), []
    whole = write()
    assert 0 < done and done + len(llm.prompts) == whole.documents == 15
    assert before and all(path.read_bytes() == content for path, content in before.items())
    llm.prompts = []
    assert write() == whole and not llm.prompts
    with pytest.raises(ValueError, match="f was begun with context 128, now it is 9; use another folder or --force"):
        write(context=9)
    llm.llm_engine.vllm_config.model_config.dtype = "torch.bfloat16"
    with pytest.raises(ValueError, match="f was begun with engine dtype float32, now it is bfloat16; use another"):
        write()


def test_the_engine_keeps_no_more_than_it_may(folder: Path, bundle: Path, llm: MadeLLM, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(some_words(60, 30, seed=3)))
    bounded = MadeLLM(folder, sae_at(bundle, kept_tokens=100))
    extract(bounded, tmp_path / "a.txt", tmp_path / "bounded", values="float32", context=20)
    extract(llm, tmp_path / "a.txt", tmp_path / "free", values="float32", context=20)
    assert bounded.waiting <= 100 < llm.waiting
    assert_same(tmp_path / "bounded", tmp_path / "free")
    with pytest.raises(ValueError, match=r"a window has 128 tokens, and the engine keeps features of 50; raise limits"):
        extract(MadeLLM(folder, sae_at(bundle, kept_tokens=50)), tmp_path / "a.txt", tmp_path / "no")


def test_what_cannot_be_read_is_refused(
    llm: MadeLLM, folder: Path, bundle: Path, bundle_of: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    out, two = tmp_path / "f", sae_at(bundle, bundle_of("feature"))
    for given, settings, message in (
        ({}, {}, r"this LLM has no SAE; make it with additional_config="),
        (two, {}, r"this LLM has the SAEs sae, second; name one of them"),
        (two, {"sae": "other"}, r"this LLM has no SAE 'other'; it has sae, second"),
        (
            sae_at(bundle),
            {"context": 512},
            r"context is 512 tokens, and the model reads at most 511; give at most these",
        ),
        (sae_at(bundle), {"context": 2}, r"context is 2 tokens, of which special tokens take 2; give at least 3"),
        (sae_at(bundle), {"values": "int8"}, r"values must be 'float24' or"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(MadeLLM(folder, given), texts, out, **settings)
    assert extract(MadeLLM(folder, two), texts, out, sae="second").documents == 15
    with pytest.raises(FileNotFoundError, match=r"no\.txt does not exist"):
        extract(llm, tmp_path / "no.txt", tmp_path / "g")
    with pytest.raises(ValueError, match=r"the files of some/model are not on this machine \(.*\), and features name"):
        extract(MadeLLM(Path("some/model"), sae_at(bundle)), texts, tmp_path / "g")
    assert CorpusSource(MadeLLM(folder, sae_at(bundle), max_model_len=20), [texts]).context == 19
    llm.times = np.inf
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: token 0 has features that are NaN or Inf, since"):
        extract(llm, texts, tmp_path / "g")


def test_the_tokenizer_of_the_llm_is_taken_where_the_folder_has_none(
    llm: MadeLLM, folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    llm.llm_engine.vllm_config.model_config.tokenizer = str(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare has no tokenizer\.json; make it where transformers is installed"):
        extract(llm, texts, tmp_path / "f")

    def save(out: str) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            Path(out, name).write_bytes((folder / name).read_bytes())

    monkeypatch.setattr(llm, "get_tokenizer", lambda: SimpleNamespace(save_pretrained=save))
    extract(llm, texts, tmp_path / "f", values="float32")
    llm.llm_engine.vllm_config.model_config.tokenizer = str(folder)
    extract(llm, texts, tmp_path / "g", values="float32")
    assert_same(tmp_path / "f", tmp_path / "g")
