"""sentence-transformers' files, as the library itself writes them and as releases before it did."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.deployed.sentence import Sentence, read_sentence

OLD = "sentence_transformers.models"


def folder(home: Path, pooling: dict[str, Any] | None, *more: str, **files: dict[str, Any]) -> Path:
    """A folder with Transformer, Pooling and more modules."""
    modules = [("", f"{OLD}.Transformer"), ("1_Pooling", f"{OLD}.Pooling"), *((kind, f"{OLD}.{kind}") for kind in more)]
    home.mkdir(parents=True, exist_ok=True)
    (home / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in modules]))
    if pooling is not None:
        (home / "1_Pooling").mkdir(exist_ok=True)
        (home / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, value in files.items():
        (home / f"{name}.json").write_text(json.dumps(value))
    return home


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, ("mean",)),
        ({"pooling_mode": ["weightedmean", "cls"]}, ("weightedmean", "cls")),
        ({"pooling_mode": "lasttoken", "pooling_mode_cls_token": True}, ("lasttoken",)),
    ],
)
def test_both_forms_of_pooling_are_read(tmp_path: Path, pooling: dict[str, Any], modes: tuple[str, ...]) -> None:
    assert read_sentence(folder(tmp_path / "m", pooling)) == Sentence(pooling=modes)


def test_prompts_length_and_case_are_read(tmp_path: Path) -> None:
    sentence = read_sentence(
        folder(
            tmp_path,
            {"pooling_mode": "mean", "include_prompt": False},
            "Normalize",
            sentence_bert_config={"max_seq_length": 77, "do_lower_case": True},
            config_sentence_transformers={"prompts": {"query": "q: ", "none": None}, "default_prompt_name": "query"},
        )
    )
    assert sentence == Sentence(
        normalise=True,
        include_prompt=False,
        prompts={"query": "q: ", "none": ""},
        default_prompt="query",
        max_length=77,
        lower_case=True,
    )


def test_the_library_and_we_read_what_it_writes_alike(tmp_path: Path) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    for modes in ("cls", ["mean", "max"], "mean_sqrt_len_tokens"):
        home = folder(tmp_path / str(modes), {})
        modules.Pooling(8, pooling_mode=modes, include_prompt=False).save(str(home / "1_Pooling"))
        again = modules.Pooling.load(str(home / "1_Pooling"))
        sentence = read_sentence(home)
        assert sentence is not None and sentence.include_prompt is again.include_prompt is False
        assert sentence.pooling == (
            (again.pooling_mode,) if isinstance(again.pooling_mode, str) else again.pooling_mode
        )


def test_a_folder_without_modules_says_nothing(tmp_path: Path) -> None:
    assert read_sentence(tmp_path) is None


def test_what_embed_does_not_compute_has_one_sentence(tmp_path: Path) -> None:
    for home, said in (
        (folder(tmp_path / "a", {}, "Dense"), "has a module 'Dense', and embed computes"),
        (folder(tmp_path / "b", None), "config.json is missing, which says how"),
        (folder(tmp_path / "c", {}, "Normalize", "Pooling"), "lists Transformer, Pooling, Normalize, Pooling, and"),
    ):
        (sentence := read_sentence(home)) is not None or pytest.fail("no sentence")
        assert sentence is not None and sentence.problem is not None and said in sentence.problem
    home = folder(tmp_path / "d", {"pooling_mode": "cls"}, "Normalize")
    (home / "Normalize").mkdir()
    (home / "Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    sentence = read_sentence(home)
    assert sentence is not None and "normalises something else" in str(sentence.problem)


@pytest.mark.parametrize(
    "files",
    [
        {"sentence_bert_config": {"max_seq_length": -1}},
        {"sentence_bert_config": {"max_seq_length": "256"}},
        {"sentence_bert_config": {"max_seq_length": True}},
        {"sentence_bert_config": {"max_seq_length": 5, "do_lower_case": 1}},
        {"config_sentence_transformers": {"prompts": ["a"]}},
        {"config_sentence_transformers": {"prompts": {"a": 3}}},
        {"config_sentence_transformers": {"prompts": {"a": "b"}, "default_prompt_name": "c"}},
        {"pooling": {"pooling_mode": "median"}},
        {"pooling": {"pooling_mode": []}},
        {"pooling": {"pooling_mode": {"a": 1}}},
        {"pooling": {"pooling_mode_cls_token": 1}},
        {"pooling": {"include_prompt": None}},
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tmp_path: Path, files: dict[str, Any]) -> None:
    home = folder(tmp_path, files.pop("pooling", {}), **files)
    if (home / "1_Pooling" / "config.json").read_text() == "{}":
        (home / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.raises(ValueError, match=r"config.*\.json: (max_seq|do_lower|prompts|default|pooling|include)"):
        read_sentence(home)


def test_modules_lead_out_of_no_folder(tmp_path: Path) -> None:
    for path in ("../x", "/x", "a/../../b"):
        (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": f"{OLD}.Pooling"}]))
        with pytest.raises(ValueError, match="leads out of its folder"):
            read_sentence(tmp_path)
