"""Whether explanations can be of an SAE: their model, their layer, and the number of its features."""

import re
from collections.abc import Sequence
from pathlib import Path

from sae_runtime.labelling.target import Target

_WIDTH = re.compile(r"(?:^|[-_])([0-9]{1,6})([km])(?=$|[-_])", re.IGNORECASE)
_LAYER = re.compile(r"^([0-9]{1,4})-")
_NUMBER = re.compile(r"(?:^|[._])([0-9]{1,4})(?=$|[._@])")
_SAME = (("instruct", "it"), ("gpt2small", "gpt2"))  # names at Neuronpedia and on the Hub


def refuse_other(target: Target, path: Path, *, model: str | None, place: str | None, highest: int) -> Sequence[str]:
    """Raise an error if explanations cannot be of an SAE, and give sentences on what may not fit.

    Args:
        target: the SAE.
        path: of the explanations, for messages.
        model: the model that they name.
        place: the SAE or module that they name.
        highest: the largest number of a feature that they explain.

    Raises:
        ValueError: they cannot.

    >>> sae = Target(folder=Path("sae"), d_sae=24576, model="gpt2", hook="blocks.6.hook_resid_pre")
    >>> refuse_other(sae, Path("a.jsonl"), model="gpt2-small", place="6-res-jb", highest=24000)
    []
    >>> refuse_other(sae, Path("a.jsonl"), model="gemma-2-2b", place="6-res-jb", highest=24000)
    Traceback (most recent call last):
    ValueError: a.jsonl explains features of gemma-2-2b, and sae is of gpt2; pass --any-source to take its labels
    """
    all_the_same = "pass --any-source to take its labels"
    if highest >= target.d_sae:
        raise ValueError(
            f"{path} explains feature {highest}, and {target.folder} has {target.d_sae:,} features; {all_the_same} of "
            "the features that are there"
        )
    for number, unit in _WIDTH.findall(place or ""):
        if not _may_be(int(number), unit, target.d_sae):
            raise ValueError(
                f"{path} explains {place}, an SAE of {number}{unit} features, and {target.folder} has "
                f"{target.d_sae:,}; {all_the_same}"
            )
    warnings = []
    if model and target.model and (ours := _plain(target.model)) != (theirs := _plain(model)):
        if ours not in theirs and theirs not in ours:
            raise ValueError(
                f"{path} explains features of {model}, and {target.folder} is of {target.model}; {all_the_same}"
            )
        warnings.append(f"{path} explains features of {model}, and {target.folder} is of {target.model}")
    layer, layers = _LAYER.match(place or ""), {int(number) for number in _NUMBER.findall(target.hook or "")}
    # The input of a layer is the output of the one before it.
    if layer and layers and min(abs(int(layer[1]) - one) for one in layers) > 1:
        raise ValueError(
            f"{path} explains {place}, and {target.folder} reads {target.hook}, another layer; {all_the_same}"
        )
    return warnings


def _may_be(number: int, unit: str, d_sae: int) -> bool:
    """Whether people write the number of features so: 16k is 16,384 or 16,000, 65k is 65,536, 1m is 1,048,576."""
    power = 1 if unit.lower() == "k" else 2
    return any(number in (d_sae // size, round(d_sae / size)) for size in (1000**power, 1024**power))


def _plain(model: str) -> str:
    """A model's name without its owner, its case and its signs."""
    name = re.sub(r"[^a-z0-9]", "", model.rstrip("/").rpartition("/")[2].lower())
    for long, short in _SAME:
        name = name.replace(long, short)
    return name
