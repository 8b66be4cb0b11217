"""What model.json says of a tokenizer, and which tokenizers the page's own code tokenises as Python does."""

import json
from collections.abc import Iterator
from typing import Any

from sae_runtime.browser.site.unfit import UnfitForPage
from sae_runtime.model import Model

# The parts of tokenizer.json that assets/site/model/tokenize.js and its neighbours know, by section.
KNOWN = {
    "model": {"WordPiece", "BPE", "Unigram", "WordLevel"},
    "normalizer": {
        *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Strip", "Replace", "Prepend"),
        *("Sequence", "Precompiled"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit", "Metaspace", "Split", "Punctuation"),
        *("Digits", "Sequence"),
    },
    "post_processor": {"TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence"},
}
_MARKS = ("continuing_subword_prefix", "end_of_word_suffix")
_INSIDE = ("normalizers", "pretokenizers", "processors")


def tokenizer_facts(model: Model) -> dict[str, Any]:
    """What the page has to know of a tokenizer beside tokenizer.json.

    Raises:
        UnfitForPage: the page's code does not know a part of it.
    """
    tokenizer = model.tokenizer
    told = json.loads(tokenizer.to_json())
    for section, known in KNOWN.items():
        for part in _parts(told.get(section)):
            kind = part.get("type")
            if kind not in known:
                raise UnfitForPage(
                    f"the tokenizer has the {section.replace('_', '-')} {kind}, which a page does not know; run the "
                    "model by sae-runtime serve"
                )
    if told["model"]["type"] == "BPE" and any(told["model"].get(mark) for mark in _MARKS):
        raise UnfitForPage(
            "the tokenizer marks the inside or the end of words, which a page does not know of BPE; run the model by "
            "sae-runtime serve"
        )
    return {
        "limit": model.window(),
        "special": {
            "ids": sorted(tokenizer.special_ids),
            "side": tokenizer.truncation_side,
            "splits": tokenizer.splits_special,
            "begin": tokenizer.special_tokens.get("bos_token"),
        },
    }


def _parts(section: Any) -> Iterator[dict[str, Any]]:
    """A part of tokenizer.json and the parts inside it."""
    if not isinstance(section, dict):
        return
    yield section
    for name in _INSIDE:
        for part in section.get(name) or ():
            yield from _parts(part)
