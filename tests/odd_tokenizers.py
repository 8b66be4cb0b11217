"""Tokenizers whose normaliser, pre-tokeniser or added tokens are as well-known models have them."""

import json
from collections.abc import Callable
from pathlib import Path

from charsmap import charsmap
from small_tokenizers import save_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
REPLACED = {
    "ﬁ": "fi",
    "½": "1/2",
    "\t": " ",
    "\n": " ",
    "\u200b": " ",
    "e\u0301": "é",
    "\x01": "",
    "\u3000": " ",
    "Å": "Å",
}


def _bytes_behind(*steps: pre_tokenizers.PreTokenizer) -> Callable[[Tokenizer], None]:
    def change(tokenizer: Tokenizer) -> None:
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])

    return change


def _with_table(tokenizer: Tokenizer) -> None:
    """As XLM-RoBERTa has it."""
    steps = [normalizers.Precompiled(charsmap(REPLACED)), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    spaces = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(spaces)


def _many_steps(tokenizer: Tokenizer) -> None:
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.NFC(), normalizers.Replace("th", "ht")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])


def _with_rules(tokenizer: Tokenizer) -> None:
    rules = {"a single word": {"single_word": True}, "left": {"lstrip": True}, "right": {"rstrip": True}}
    for content, flags in rules.items():
        tokenizer.add_special_tokens([AddedToken(content, normalized=False, **flags)])
    tokenizer.add_tokens([AddedToken("Café", normalized=True), AddedToken("the", normalized=False, single_word=True)])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])


VARIANTS: dict[str, tuple[str, Callable[[Tokenizer], None]]] = {
    "digits": (
        "byte level",
        _bytes_behind(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)),
    ),
    "runs of digits": ("byte level", _bytes_behind(pre_tokenizers.Digits(), pre_tokenizers.Punctuation("contiguous"))),
    "gpt-4": ("byte level", _bytes_behind(pre_tokenizers.Split(Regex(GPT4), "isolated"))),
    "removed": ("byte level", _bytes_behind(pre_tokenizers.Split("e", "removed"))),
    "with previous": ("byte level", _bytes_behind(pre_tokenizers.Split(Regex(r"[aeiou]+"), "merged_with_previous"))),
    "with next": ("byte level", _bytes_behind(pre_tokenizers.Split(" ", "merged_with_next"))),
    "inverted": ("byte level", _bytes_behind(pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True))),
    "table": ("unigram", _with_table),
    "steps": ("word piece", _many_steps),
    "rules": ("word piece", _with_rules),
    "rules of bytes": ("byte level", _with_rules),
}


def save_variant(folder: Path, name: str) -> Path:
    """A folder with a tokenizer of `VARIANTS`."""
    kind, change = VARIANTS[name]
    save_tokenizer(folder, kind)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    change(tokenizer)
    tokenizer.save(str(path))
    assert json.loads(path.read_text())["model"]
    return folder
