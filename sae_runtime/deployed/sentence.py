"""How sentence-transformers' files say that texts become vectors: pooling, normalisation, prompts, truncation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.model_files import MODULES, modules
from sae_runtime.bundle.typed_json import read_file, shown

SETTINGS = "config_sentence_transformers.json"
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers looks for the settings of its Transformer, in this order."""
_LIBRARY = "sentence_transformers."
# The names before release 6, in the order in which it concatenates them.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """How the host's outputs become a vector for each text.

    Attributes:
        pooling: names out of `POOLING_MODES`; the vectors of several are joined, in this order.
        normalise: whether the vector gets length 1.
        include_prompt: whether the prompt's tokens are pooled too.
        prompts: texts that stand before a text, by name.
        default_prompt: the name of the prompt that is used unless another one is asked for.
        max_length: tokens of a text with special ones; longer texts are cut. None: the files do not say.
        lower_case: whether texts become lower case before the tokenizer.
        problem: a sentence that says why `embed` cannot give this model's vectors; None: it can.
    """

    pooling: tuple[str, ...] = ("mean",)
    normalise: bool = False
    include_prompt: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    problem: str | None = None


def read_sentence(home: Path) -> Sentence | None:
    """Read sentence-transformers' files in a folder; None where there are none.

    >>> Path("pooled/1_Pooling").mkdir(parents=True)
    >>> library = "sentence_transformers.models"
    >>> _ = Path("pooled/modules.json").write_text(
    ...     f'[{{"path": "", "type": "{library}.Transformer"}}, {{"path": "1_Pooling", "type": "{library}.Pooling"}}]')
    >>> _ = Path("pooled/1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    >>> read_sentence(Path("pooled")).pooling
    ('cls',)

    Raises:
        ValueError: a file is no JSON, a value has another type or form, or a file is a link out of the folder.
    """
    # A class of another library keeps its whole name: it may compute anything.
    listed = [(name.rpartition(".")[2] if name.startswith(_LIBRARY) else name, path) for name, path in modules(home)]
    if not listed:
        return None
    found: dict[str, Any] = {"problem": _problem(home, [kind for kind, _ in listed])}
    for kind, path in listed:
        if kind == "Transformer":
            found |= _transformer(path, home)
        elif kind == "Pooling" and found["problem"] is None:
            found |= _pooling(path / "config.json", home)
        elif kind == "Normalize":
            found["normalise"] = True
            settings = _object(path / "config.json", home)
            names = [settings.get(f"module_{what}_name") for what in ("input", "output")]
            if any(name not in (None, "sentence_embedding") for name in names):
                found["problem"] = f"{path / 'config.json'} normalises something else than the text's vector"
    return Sentence(**found, **_prompts(home))


def _problem(home: Path, kinds: list[str]) -> str | None:
    """Why the modules are not of a form that `embed` computes: Transformer, Pooling, and Normalize if at all."""
    known = {"Transformer", "Pooling", "Normalize"}
    if others := [kind for kind in kinds if kind not in known]:
        return (
            f"{home / MODULES} has a module {shown(others[0])}, and embed computes Transformer, Pooling and Normalize "
            "alone; take the model's outputs from run"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        return (
            f"{home / MODULES} lists {', '.join(kinds) or 'no modules'}, and embed computes Transformer, Pooling and "
            "Normalize in this order; take the model's outputs from run"
        )
    return None


def _transformer(path: Path, home: Path) -> dict[str, Any]:
    for name in TRANSFORMER_FILES:
        file = path / name
        if not (settings := _object(file, home)):
            continue
        length, lower = settings.get("max_seq_length"), settings.get("do_lower_case", False)
        if not (length is None or type(length) is int and 0 < length < 1 << 63):
            raise ValueError(f"{file}: max_seq_length must be a number of tokens or null, got {shown(length)}")
        return {"max_length": length, "lower_case": _bool(lower, file, "do_lower_case")}
    return {}


def _pooling(file: Path, home: Path) -> dict[str, Any]:
    settings = _object(file, home)
    if not settings:
        return {"problem": f"{file} is missing, which says how the tokens' vectors become one; copy the model again"}
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _OLD_MODES.items() if _bool(settings.get(name, False), file, name)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or any(mode not in POOLING_MODES for mode in modes):
        raise ValueError(f"{file}: pooling_mode must be some of {', '.join(POOLING_MODES)}, got {shown(modes)}")
    included = _bool(settings.get("include_prompt", True), file, "include_prompt")
    return {"pooling": tuple(modes), "include_prompt": included}


def _prompts(home: Path) -> dict[str, Any]:
    file = home / SETTINGS
    settings = _object(file, home)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    texts = isinstance(prompts, dict) and all(text is None or isinstance(text, str) for text in prompts.values())
    if not texts:
        raise ValueError(f"{file}: prompts must be texts by their names, got {shown(prompts)}")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ValueError(f"{file}: default_prompt_name must be a name of its prompts, got {shown(default)}")
    return {"prompts": {name: text or "" for name, text in prompts.items()}, "default_prompt": default}


def _object(file: Path, home: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where the file is missing."""
    if not file.is_file():
        return {}
    refuse_link_out(file, home)
    found: dict[str, Any] = read_file(dict[str, Any], file, foreign=True)
    return found


def _bool(value: object, file: Path, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{file}: {name} must be true or false, got {shown(value)}")
    return value
