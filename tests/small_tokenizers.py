"""Folders with small tokenizers of every usual kind, made with `tokenizers` alone, and odd texts for them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = ["Open the file and read the first line.", "the theory of the other thing", "Zoë's naïve café — 你好 😀"] * 4
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTES: list[str] = sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=BYTES, show_progress=False),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHATML,
        "model_max_length": 10**30,
    }


def _left(folder: Path) -> dict[str, Any]:
    return {**_byte_level(folder), "padding_side": "left", "truncation_side": "left", "model_max_length": 64}


def _bos_eos(folder: Path) -> dict[str, Any]:
    return {**_byte_level(folder), "add_bos_token": True, "add_eos_token": True}


def _framed_bytes(folder: Path, post_processor: Any, **settings: Any) -> dict[str, Any]:
    named = _byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = post_processor
    tokenizer.save(str(folder / "tokenizer.json"))
    return {**named, **settings}


def _roberta(folder: Path) -> dict[str, Any]:
    frame = processors.RobertaProcessing(("<|im_end|>", 1), ("<|im_start|>", 0), trim_offsets=True)
    return _framed_bytes(folder, frame)


def _trimmed(folder: Path) -> dict[str, Any]:
    """Offsets of byte-level tokens without their blanks, as GPT-2 has them."""
    return _framed_bytes(folder, processors.ByteLevel(trim_offsets=True))


def _word_piece(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    return {**roles, "mask_token": "[MASK]", "model_max_length": 32}


def _cased(folder: Path) -> dict[str, Any]:
    """A class whose settings decide about case, against what tokenizer.json says."""
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True}
    return {**_word_piece(folder), **settings, "tokenize_chinese_chars": False}


def _baked(folder: Path) -> dict[str, Any]:
    named = _word_piece(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=12, pad_id=0, pad_token="[PAD]", direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    del named["pad_token"]
    return named


def _unigram(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _sentence_piece(folder: Path) -> dict[str, Any]:
    """As Llama 2 has it: merges over blanks that are letters, and bytes for unknown characters."""
    letters = sorted(
        {
            character
            for text in CORPUS
            for character in text.replace(" ", "▁")
            if ord(character) < 128 or character == "▁"
        }
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "▁th", "the", "▁the"]
    merges = [("t", "h"), ("▁", "th"), ("th", "e"), ("▁th", "e")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _words(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "file": 1, "open": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return {}


def _named_later(folder: Path) -> dict[str, Any]:
    """Special tokens that tokenizer_config.json names and tokenizer.json lacks, one with rules of its own."""
    _words(folder)
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False}
    return {"eos_token": "<|end|>", "mask_token": {**mask, "normalized": False}, "extra_special_tokens": ["<|tool|>"]}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{"byte level": _byte_level, "left": _left, "bos and eos": _bos_eos, "roberta": _roberta, "trimmed": _trimmed},
    **{
        "word piece": _word_piece,
        "cased": _cased,
        "baked": _baked,
        "unigram": _unigram,
        "sentence piece": _sentence_piece,
    },
    **{"words": _words, "named later": _named_later},
}


def save_tokenizer(folder: Path, kind: str, **settings: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json of a kind; `settings` go into the latter."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **KINDS[kind](folder), **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def save_example(folder: Path) -> Path:
    """A tokenizer of ten words, for examples in docstrings."""
    folder.mkdir()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##s", "read", "the", "open", "file"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    config = {**roles, "model_max_length": 64, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


_PIECES = (
    *("Open the file", "the", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "don't", "3.14", "...", "—", "\u200b"),
    *(
        "👩\u200d👩\u200d👧\u200d👦",
        "🏳️\u200d🌈",
        "👍🏽",
        "🇩🇪",
        "😀",
        "你好",
        "世界",
        "日本語のテキスト",
        "한국어",
        "مرحبا بالعالم",
        "שלום",
    ),
    *(
        "e\u0301",
        "Z\u0351\u036b\u0343\u036a",
        "ﬁ",
        "Å",
        "A\u030a",
        "½",
        "ß",
        "İ",
        "ı",
        "ǅ",
        "\0",
        "\x01",
        "\x1b[2J",
        "\x7f",
    ),
    *(
        "\ufeff",
        "\ufffd",
        "\ufffe",
        "\u202e",
        "\u2028",
        "\U0010ffff",
        "\ue000",
        "[SEP]",
        "[CLS]",
        "[MASK]",
        "<|im_start|>",
    ),
    *(
        "<|im_end|>",
        "<s>",
        "</s>",
        "<unk>",
        "<mask>",
        "<|tool|>",
        "<|end|>",
        "▁",
        "Ġ",
        "##ing",
        "<0x41>",
        "हिन्दी",
        "ไทย",
    ),
)


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of every kind of character: joined emoji, scripts without blanks, combining marks, controls, blanks."""
    rng = random.Random(seed)
    texts = ["", " ", "\n", "   \t ", "\0", "a", *_PIECES]
    while len(texts) < count:
        if rng.random() < 0.2:  # any characters at all
            kinds = [
                (32, 127),
                (0, 32),
                (0x80, 0x250),
                (0x300, 0x370),
                (0x590, 0x700),
                (0x4E00, 0x9FFF),
                (0x1F300, 0x1FAFF),
            ]
            texts.append("".join(chr(rng.randrange(*rng.choice(kinds))) for _ in range(rng.randrange(40))))
        else:
            blank = rng.choice(["", " ", "  "])
            texts.append(blank.join(rng.choices(_PIECES, k=rng.randrange(1, 30))))
    return texts
