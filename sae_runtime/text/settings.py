"""What the files beside tokenizer.json say: special tokens, sides, lengths. The files are a stranger's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.typed_json import from_dict, read_file, shown

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers knows by a role."""

_RULES = ("single_word", "lstrip", "rstrip", "normalized")  # of a token beside the vocabulary
_LONGEST = 10**9  # of model_max_length; transformers writes 10**30 for "no limit"
_OFFSET_FAMILIES = ("roberta", "camembert", "mpnet", "data2vec-text", "longformer", "esm", "ibert", "xmod", "luke")

# What transformers' classes name where the files do not.
_BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_ROBERTA = {
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"},
    **{"cls_token": "<s>", "mask_token": "<mask>"},
}
_DEFAULTS = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), _BERT),
    **dict.fromkeys(("roberta", "xlmroberta", "camembert", "longformer", "bart"), _ROBERTA),
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}


@dataclass(frozen=True)
class Settings:
    """What the files beside tokenizer.json say.

    Attributes:
        config: tokenizer_config.json, or {}.
        kind: the family of transformers' class, such as "bert" or "gpt2".
        named: the special token of each role; a mapping is a token with rules of its own, as AddedToken takes them.
        more: special tokens without a role.
        added: tokens beside the vocabulary, by rising id, in the same form with "special" too.
        redefines: whether `added` also gives the rules of tokens that tokenizer.json has.
        max_length: the largest number of tokens that the tokenizer's files allow; None: not known.
        positions: the number of tokens for which the model has positions; None: not known.
        end_ids: ids that end a generated text; empty: the files do not say.
        pad_id: what the model's configuration says; None: nothing.
    """

    config: Mapping[str, Any]
    kind: str
    named: Mapping[str, str | Mapping[str, Any]]
    more: tuple[str | Mapping[str, Any], ...]
    added: tuple[Mapping[str, Any], ...]
    redefines: bool
    max_length: int | None
    positions: int | None
    end_ids: tuple[int, ...]
    pad_id: int | None


def read_settings(home: Path) -> Settings:
    """Read the files of a folder that has a tokenizer.json; none of them is required.

    Raises:
        OSError: a file may not be read.
        ValueError: a file is not readable JSON, or a value that decides tokens has another type.
    """
    config = read_object(home, "tokenizer_config.json")
    model = read_object(home, "config.json")
    redefines = "added_tokens_decoder" in config
    if not redefines:
        config = {**config, **read_object(home, "special_tokens_map.json")}
    where = home / "tokenizer_config.json"
    kind = _kind(config, model)
    named: dict[str, str | Mapping[str, Any]] = {
        **_DEFAULTS.get(kind, {}),
        **{k: _token(config[k], f"{where}.{k}") for k in NAMES if config.get(k)},
    }
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, Mapping) else extra
    place = f"{where}.extra_special_tokens"
    more = tuple(_token(token, place) for token in from_dict(tuple[Any, ...], extra, place))
    if redefines:
        added = _added(config["added_tokens_decoder"], f"{where}.added_tokens_decoder")
    else:
        special = {token if isinstance(token, str) else token["content"] for token in (*named.values(), *more)}
        old = {
            str(id_): {"content": token, "normalized": token not in special, "special": token in special}
            for token, id_ in read_object(home, "added_tokens.json").items()
        }
        added = _added(old, str(home / "added_tokens.json"))
    ends: tuple[int, ...] = ()
    generation, genai = read_object(home, "generation_config.json"), read_object(home, "genai_config.json")
    for source in (generation, model, genai.get("model")):
        ends = ends or _ids(source.get("eos_token_id") if isinstance(source, Mapping) else None)
    pad = _ids(model.get("pad_token_id"))
    told: Any = config.get("model_max_length", config.get("max_len"))
    length = int(told) if _is_length(told) else None
    positions, padding = _positions(model), pad[0] if pad else None
    return Settings(config, kind, named, more, added, redefines, length, positions, ends, padding)


def read_object(home: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder; {} where there is no such file."""
    path = home / name
    if not path.is_file():
        return {}
    refuse_link_out(path, home)
    read: dict[str, Any] = read_file(dict[str, Any], path, foreign=True)
    return read


def _kind(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    told = config.get("tokenizer_class")
    told = told if isinstance(told, str) else str(model.get("model_type", ""))
    return told.removesuffix("Fast").removesuffix("Tokenizer").lower().replace("-", "")


def _token(value: Any, where: str) -> str | Mapping[str, Any]:
    if isinstance(value, Mapping):
        return _rules(value, where)
    text: str = from_dict(str, value, where)
    return text


def _rules(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    rules = {"content": from_dict(str, value.get("content"), f"{where}.content")}
    flags = {k: value[k] for k in _RULES if k in value}
    return {**rules, **from_dict(dict[str, bool], flags, where)}


def _added(tokens: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tokens in the order of their ids, which are JSON's names."""
    by_id: dict[int, Mapping[str, Any]] = {}
    for id_, token in from_dict(dict[str, dict[str, Any]], tokens, where).items():
        if not (id_.isascii() and id_.isdecimal() and len(id_) < 10):
            raise ValueError(f"{where} must have ids of tokens, got {shown(id_)}; mend it")
        by_id[int(id_)] = {**_rules(token, f"{where}.{id_}"), "special": token.get("special", False) is True}
    return tuple(by_id[id_] for id_ in sorted(by_id))


def _positions(model: Mapping[str, Any]) -> int | None:
    """The number of tokens for which a model has positions; None: its file does not say."""
    if "t5" in str(model.get("model_type", "")):
        return None  # its positions are distances, and its n_positions is no limit
    told: list[Any] = [model.get(key) for key in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    lengths = [int(value) - first_position(model) for value in told if _is_length(value)]
    return min((length for length in lengths if length > 0), default=None)


def first_position(model: Mapping[str, Any]) -> int:
    """The position of a text's first token: RoBERTa and its relatives count from behind the id of padding on.

    Args:
        model: config.json.

    >>> first_position({"model_type": "xlm-roberta", "pad_token_id": 1}), first_position({"model_type": "bert"})
    (2, 0)
    """
    family = str(model.get("model_type", ""))
    is_behind = any(name in family for name in _OFFSET_FAMILIES)
    return (_ids(model.get("pad_token_id")) or (1,))[0] + 1 if is_behind else 0


def _is_length(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < _LONGEST
    )


def _ids(value: Any) -> tuple[int, ...]:
    """One id or several, as generation_config.json has them; what is no id is left out."""
    ids = value if isinstance(value, list) else [value]
    return tuple(one for one in ids if type(one) is int and 0 <= one < 1 << 31)


def side(value: Any, where: str) -> str:
    """The side of padding or truncation: "left" or "right".

    Raises:
        ValueError: it is neither.

    >>> side("left", "padding_side")
    'left'
    """
    if value not in ("left", "right"):
        raise ValueError(f"{where} must be left or right, got {shown(value)}; mend tokenizer_config.json")
    return str(value)
