"""A query steered by a feature, and the sentences that are nearest to it before and after."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.demo.lines import Line, Lists
from sae_runtime.demo.readable import Readable
from sae_runtime.model import Model

QUERY = "This method does nothing by default and may be overridden."
_LONGEST = 600  # characters of a sentence; the model would leave out the end of a long one
_NEIGHBOURS = 5
TIMES = 2  # of a feature's largest activation: to so much it is set


def steered(
    model: Model, sae: str, features: Sequence[Readable], texts: Sequence[str], count: int
) -> tuple[Readable, Lists]:
    """The feature with the clearest effect on the query's neighbours, and these neighbours before and after.

    Each feature is set to twice its largest activation. A sentence is marked if the feature has at least half of its
    largest activation there.

    Args:
        model: the deployed model.
        sae: the name of the SAE in it.
        features: features to try.
        texts: sentences.
        count: how many of them the query is compared with.
    """
    corpus = [text for text in texts if len(text) <= _LONGEST][:count]
    embedded = model.embed(corpus)

    def neighbours(edits: dict[str, list[Edit]]) -> tuple[NDArray[np.float32], list[int]]:
        cosines = embedded @ model.embed(QUERY, edits)
        return cosines, np.argsort(-cosines, kind="stable")[:_NEIGHBOURS].tolist()

    before = neighbours({})
    effects = [(one, neighbours({sae: [Edit.set(one.number, TIMES * one.largest)]})) for one in features]
    near = sorted({number for _, numbers in [before, *(after for _, after in effects)] for number in numbers})
    seen = dict(zip(near, model.features([corpus[number] for number in near]), strict=True))

    def lines(feature: Readable, cosines: NDArray[np.float32], numbers: list[int]) -> tuple[Line, ...]:
        largest = {number: seen[number].saes[sae].to_dense()[:, feature.number].max() for number in numbers}
        return tuple(
            Line(float(cosines[number]), corpus[number], active=bool(largest[number] > 0.5 * feature.largest))
            for number in numbers
        )

    shown = [(one, lines(one, *before), lines(one, *after)) for one, after in effects]
    feature, first, then = max(shown, key=lambda each: _active(each[2]) - _active(each[1]))
    mark = "(marked: the feature is active in them)"
    return feature, [(f"nearest sentences before {mark}", first), (f"nearest sentences after {mark}", then)]


def _active(lines: Sequence[Line]) -> int:
    return sum(line.active for line in lines)
