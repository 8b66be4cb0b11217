"""Windows of long texts are those of harvest: the same ids, positions and kept tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import KINDS, odd_texts, save_tokenizer
from transformers import AutoTokenizer

from sae_runtime.activations.documents import Document, Source
from sae_runtime.activations.windows import windows
from sae_runtime.text.tokenizer import open_tokenizer


@pytest.mark.parametrize("context", [4, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_harvest(kind: str, context: int, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", kind)
    ours, theirs = open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["the file [SEP] the <|im_end|> other " * 30, *odd_texts(150, seed=3)]
    documents = [Document(text, Source("a.txt", row)) for row, text in enumerate(texts)]
    harvested: dict[int, list[Any]] = {}
    for window in windows(theirs, documents, context=context, special=False):
        harvested.setdefault(window.document, []).append(window)
    for number, text in enumerate(texts):
        cut = ours.windows(text, context)
        kept = [one for one in cut if one.kept.any()]  # harvest has no window without rows
        expected = harvested.get(number, [])
        assert len(kept) == len(expected)
        for one, window in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(one.ids, window.ids)
            np.testing.assert_array_equal(one.positions, window.positions)
            np.testing.assert_array_equal(one.kept, window.kept)
        whole = theirs(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]
        assert [tuple(pair) for one in cut for pair in one.offsets[~one.special].tolist()] == whole
