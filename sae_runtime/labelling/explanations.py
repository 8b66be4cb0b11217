"""Explanations of features, as the records of other tools' files hold them.

Tools name the same thing differently. A record has a feature's number, its text and perhaps a score, the tool that
explained it, the model, and the place: the SAE's name at Neuronpedia (`6-res-jb`), or the module at delphi.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sae_runtime.bundle.typed_json import shown

FEATURE = ("index", "feature", "feature_index", "feature_id", "latent", "neuron", "id")
TEXT = ("description", "explanation", "label", "text")
_SCORE = ("score", "scores", "scoreV2", "scoreV1")
_EXPLAINER = ("explanationModelName", "modelName", "explainer", "explainer_model")
_MODEL = ("modelId", "model_id", "model")
_PLACE = ("layer", "source", "sae_id", "saeId", "module")
_INSIDE = ("explanations", "features", "data", "results")  # lists of records inside an object
_INHERITED = ("index", "modelId", "model_id", "layer", "source")
_WHOLE = re.compile(r"\s*([0-9]{1,18})(?:\.0*)?\s*")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A text about a feature.

    Attributes:
        feature: its number.
        text: as the file has it.
        score: how well it explains, the larger the better; None where it was not measured.
        explainer: who or what wrote it; None where the file does not say.
        origin: the tool that the file says it came from; None where it does not.
        model: the model, as the file names it.
        place: the SAE or the module, as the file names it.
    """

    feature: int
    text: str
    score: float | None = None
    explainer: str | None = None
    origin: str | None = None
    model: str | None = None
    place: str | None = None


def records(value: Any, where: str) -> Iterator[dict[str, Any]]:
    """The records in a value of JSON: a list of them, one of them, objects with lists of them, or texts by number.

    >>> list(records({"explanations": [{"index": "3", "description": "files"}]}, "a.json"))
    [{'index': '3', 'description': 'files'}]
    >>> list(records({"3": "files"}, "a.json"))
    [{'index': '3', 'description': 'files'}]

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from records(one, f"{where}[{number}]")
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object or a list of objects, got {shown(value)}")
    inside = [name for name in _INSIDE if isinstance(value.get(name), list)]
    if inside:
        known = {name: value[name] for name in _INHERITED if name in value}
        for name in inside:
            for one in records(value[name], f"{where}.{name}"):
                yield known | one
    elif value and all(_WHOLE.fullmatch(name) for name in value):
        for name, one in value.items():
            for each in one if isinstance(one, list) else [one]:
                yield {"index": name} | (each if isinstance(each, dict) else {"description": each})
    else:
        yield value


def explanation(record: Mapping[str, Any], where: str) -> Explanation | None:
    """The explanation of a record; None where it has no feature, or no text.

    >>> explanation({"index": "3", "description": "files", "modelId": "gpt2-small"}, "line 1").feature
    3
    >>> explanation({"index": 3, "description": None}, "line 1")

    Raises:
        ValueError: the feature is no whole number, or the text is no text.
    """
    feature, text = _first(record, FEATURE), _first(record, TEXT)
    if _is_empty(feature) or _is_empty(text):
        return None
    if not isinstance(text, str):
        raise ValueError(f"{where}: an explanation must be a text, got {shown(text)}")
    ours = "feature" in record and "label" in record  # of labels.jsonl, where the source is the tool
    place = _first(record, [name for name in _PLACE if not ours or name != "source"])
    return Explanation(
        feature=_number(feature, where),
        text=text,
        score=_score(_first(record, _SCORE)),
        explainer=_text(_first(record, _EXPLAINER)),
        origin=_text(record.get("source")) if ours else None,
        model=_text(_first(record, _MODEL)),
        place=_text(place),
    )


def _number(value: Any, where: str) -> int:
    whole = _WHOLE.fullmatch(str(value)) if not isinstance(value, bool) else None
    if whole is None:
        raise ValueError(f"{where}: a feature is a whole number, got {shown(value)}")
    return int(whole[1])


def _score(value: Any) -> float | None:
    """A number, or the mean of several; other values are no score."""
    if isinstance(value, Mapping):
        value = value["value"] if "value" in value else list(value.values())
    if isinstance(value, list):
        each = [score for score in map(_score, value) if score is not None]
        return _score(sum(each) / len(each)) if each else None
    try:
        score = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _first(record: Mapping[str, Any], names: Any) -> Any:
    """The value of the first of these names that has one."""
    return next((record[name] for name in names if not _is_empty(record.get(name))), None)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str | list) and not value)  # noqa: PLR0124  # NaN


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, Mapping | list) else str(value)
