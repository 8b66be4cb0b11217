"""What a tokenizer does besides tokens that equal transformers', and what it refuses."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from small_tokenizers import odd_texts, save_tokenizer

from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tokenizer(tmp_path / "t", "word piece")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return open_tokenizer(folder)


def test_prompt_before_a_text(tokenizer: Tokenizer) -> None:
    (plain,) = tokenizer.encode(["Open the file"])
    (asked,) = tokenizer.encode(["Open the file"], prefix="read: ")
    own = asked.kept
    np.testing.assert_array_equal(asked.ids[own], plain.ids[plain.kept])
    np.testing.assert_array_equal(asked.offsets[own], plain.offsets[plain.kept])
    assert not (asked.prompt & (asked.special | own)).any() and (asked.prompt | asked.special | own).all()
    assert asked.prompt.any() and not asked.offsets[asked.prompt].any() and not plain.prompt.any()


def test_a_token_of_prompt_and_text_is_the_texts(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(save_tokenizer(tmp_path / "t", "byte level"))
    (tokens,) = tokenizer.encode(["e file"], prefix="th")
    assert tokens.offsets[0].tolist() == [0, 1] and not tokens.prompt[0]


def test_limit_without_room(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(["Open the file"], limit=3)[0]) == 3
    for limit in (2, 0, -1):
        with pytest.raises(
            ValueError, match=f"context is {limit} tokens, of which special tokens take 2; give at least 3"
        ):
            tokenizer.encode(["Open the file"], limit=limit)
    with pytest.raises(ValueError, match="give at least 3"):
        tokenizer.windows("Open the file", 2)


def test_windows_of_a_text_without_tokens(tokenizer: Tokenizer) -> None:
    (window,) = tokenizer.windows("", 5)
    assert window.special.tolist() == [True, True]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one text", "texts must be a list of texts, got str"),
        (None, "texts must be a list of texts, got NoneType"),
        ([None], "text 0 is NoneType, expected str"),
        (["a", b"b"], "text 1 is bytes, expected str"),
        (["a", ["b"]], "text 1 is list, expected str"),
        (["a", ("b", "c")], "text 1 is tuple, expected str"),
        (["a", "b\ud800"], "text 1 holds half of a character .*at character 1"),
        (["\udcff"], "text 0 holds half of a character"),
        ([3.5], "text 0 is float, expected str"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "read: "])
def test_what_is_no_text(tokenizer: Tokenizer, texts: Any, said: str, prefix: str) -> None:
    with pytest.raises(ValueError, match=said):
        tokenizer.encode(texts, prefix=prefix)


def test_ids_that_are_none(tokenizer: Tokenizer) -> None:
    for ids in ([-1], [1 << 40]):
        with pytest.raises(ValueError, match="ids of this tokenizer are 0 to"):
            tokenizer.decode(ids)
    assert tokenizer.decode([1 << 30]) == "" and tokenizer.token(1 << 30) is None


def test_ends_pads_and_lengths(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", "byte level")
    (folder / "config.json").write_text('{"eos_token_id": 5, "max_position_embeddings": 99, "pad_token_id": 3}')
    opened = open_tokenizer(folder)
    assert (opened.end_ids, opened.max_length, opened.pad_id) == ((5,), 99, 2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert open_tokenizer(folder).end_ids == (7, 8)
    (folder / "config.json").write_text(
        '{"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1, "eos_token_id": "x"}'
    )
    assert open_tokenizer(folder).max_length == 512
    (folder / "config.json").write_text('{"model_type": "t5", "n_positions": 512}')
    assert open_tokenizer(folder).max_length is None  # distances, at any length


def test_folder_without_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match=r"has no tokenizer.json; it has vocab.txt; make it where transformers is"):
        open_tokenizer(tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_model(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["model"].update(fields)


def set_part(name: str, part: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update({name: part})


@pytest.mark.parametrize(
    "change",
    [
        set_model(type="Unigram", vocab=[], unk_id=9),
        set_model(type="BPE", vocab={"a": 0}, merges=[["a", "b"]]),
        set_model(type="NoSuchModel"),
        set_model(vocab={"a": -1}),
        set_model(vocab={"a": "b"}),
        set_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        set_part(
            "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
        ),
        set_part("added_tokens", [{"id": 0}]),
        set_part("model", None),
    ],
)
def test_tokenizer_json_that_cannot_be_read(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite(folder, change)
    with pytest.raises(
        ValueError, match=r"tokenizer.json cannot be read by tokenizers [\d.]+ \(.*\); update tokenizers"
    ):
        open_tokenizer(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff{}", b"null", b'"a"'])
def test_tokenizer_json_that_is_no_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.json (cannot be read|is not UTF-8)"):
        open_tokenizer(folder)


def test_a_frame_of_tokens_that_are_not_there(folder: Path) -> None:
    frame = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": frame, "pair": frame, "special_tokens": {}}
    rewrite(folder, set_part("post_processor", processor))
    with pytest.raises(ValueError, match="fails on a text"):
        open_tokenizer(folder).encode(["open"])


def test_ids_beyond_the_model(folder: Path) -> None:
    size = open_tokenizer(folder).size
    assert open_tokenizer(folder, vocabulary=size).size == size
    with pytest.raises(ValueError, match=rf"has ids up to {size - 1}, the model knows {size - 1} \(0 to {size - 2}\)"):
        open_tokenizer(folder, vocabulary=size - 1)
    rewrite(folder, lambda value: value["model"]["vocab"].update(zz=4_000_000_000))
    with pytest.raises(ValueError, match="has the id 4000000000, far beyond any model's"):
        open_tokenizer(folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"padding_side": "up"}, "padding_side must be left or right, got 'up'"),
        ({"truncation_side": 3}, "truncation_side must be left or right, got 3"),
        ({"eos_token": 3}, "eos_token must be str, got 3"),
        ({"eos_token": {"content": None}}, "eos_token.content must be str"),
        ({"eos_token": "\ud800"}, "without NUL and surrogates"),
        ({"extra_special_tokens": 3}, "extra_special_tokens must be"),
        ({"extra_special_tokens": [3]}, "extra_special_tokens must be str, got 3"),
        ({"chat_template": 3}, "chat_template must be text or a list of named texts"),
        ({"chat_template": [{"name": "default"}]}, "chat_template must be text or a list of named texts"),
    ],
)
def test_settings_of_another_form(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    folder = save_tokenizer(tmp_path / "t", "word piece", **settings)
    with pytest.raises(ValueError, match=said):
        open_tokenizer(folder)


@pytest.mark.parametrize("value", [0, -1, True, "512", None, float("nan"), float("inf"), 1e30, [512], 10**40])
def test_lengths_that_say_nothing(tmp_path: Path, value: Any) -> None:
    assert open_tokenizer(save_tokenizer(tmp_path / "t", "words", model_max_length=value)).max_length is None


def test_files_outside_the_folder_are_not_read(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / name).write_text("{}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is a link out of its folder"):
            open_tokenizer(folder)
        (folder / name).unlink()
        if name == "tokenizer.json":
            tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / name))


def test_old_tokenizers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "__version__", "0.15.2")
    with pytest.raises(ImportError, match=r"tokenizers 0.15.2 is too old, 0.22 is the oldest; run: pip install -U"):
        open_tokenizer(folder)


def test_case_is_as_the_settings_of_bert_say(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    told = open_tokenizer(save_tokenizer(tmp_path / "t", "word piece", **settings))
    plain = open_tokenizer(save_tokenizer(tmp_path / "u", "word piece"))
    assert told.encode(["Open THE"])[0].ids.tolist() != plain.encode(["Open THE"])[0].ids.tolist()
    assert plain.encode(["Open THE"])[0].ids.tolist() == plain.encode(["open the"])[0].ids.tolist()


def test_a_pickled_one_and_one_of_another_process_give_the_same(tmp_path: Path) -> None:
    for kind in ("word piece", "named later"):
        tokenizer = open_tokenizer(save_tokenizer(tmp_path / kind, kind))
        texts = odd_texts(30)
        expected = [tokens.ids.tolist() for tokens in tokenizer.encode(texts)]
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert [tokens.ids.tolist() for tokens in copy.encode(texts)] == expected
        assert copy.special_tokens == tokenizer.special_tokens


def test_threads_with_different_limits(tokenizer: Tokenizer) -> None:
    """A limit is an argument and no state of the tokenizer."""
    text = "open the file and read " * 20
    faults: list[int] = []

    def one(limit: int) -> None:
        for _ in range(100):
            if len(tokenizer.encode([text], limit=limit)[0]) != limit:
                faults.append(limit)

    threads = [threading.Thread(target=one, args=(limit,)) for limit in (4, 9, 17, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


FORKED = """
import multiprocessing, sys
from sae_runtime.text.tokenizer import open_tokenizer
tokenizer = open_tokenizer(sys.argv[1])
texts = ["open the file", "the other thing"] * 50
expected = [one.ids.tolist() for one in tokenizer.encode(texts)]

def work(_):
    return [one.ids.tolist() for one in tokenizer.encode(texts)], tokenizer.encode(["open"])[0].ids.tolist()

with multiprocessing.get_context("fork").Pool(1) as pool:
    ((many, one),) = pool.map(work, [0])
assert many == expected and one == tokenizer.encode(["open"])[0].ids.tolist()
heavy = {"torch", "transformers", "onnx", "jinja2", "huggingface_hub", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_works_after_a_fork_and_loads_nothing_heavy(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_other_threads_run_while_a_long_text_is_read(folder: Path) -> None:
    """`encode` holds Python's lock for seconds where a text has a million characters, `encode_batch` does not."""
    tokenizer, text = open_tokenizer(folder), "Open the file. " * 1000
    expected, calls = tokenizer.encode([text, "a"])[0], []

    class Told:
        def __getattr__(self, name: str, own: Any = tokenizer._rust) -> Any:
            calls.append(name)
            return getattr(own, name)

    tokenizer._rust = Told()
    (found,) = tokenizer.encode([text])
    assert calls == ["encode_batch"] and found.offsets.tolist() == expected.offsets.tolist()
    assert found.ids.tolist() == expected.ids.tolist()
