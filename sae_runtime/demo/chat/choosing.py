"""The feature of a concept, and how far it is pushed: chosen by the answers to questions that do not count."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sae_runtime import Model
from sae_runtime.demo.chat.sentences import ABOUT, AGAINST
from sae_runtime.demo.chat.words import distinct_2, named
from sae_runtime.extraction.finding import find

SHARE = 0.6  # of the answers to the questions that choose, which must name the concept; as many must of the others


@dataclass(frozen=True)
class Trial:
    """A feature at a strength, and the figures of the answers.

    Attributes:
        feature: its number.
        times: what is added to it, in multiples of its largest activation.
        auc: how well it tells texts about the concept from others.
        naming: answers that have one of the concept's words.
        distinct: distinct-2 of the answers, by that of the plain ones.
    """

    feature: int
    times: float
    auc: float
    naming: int
    distinct: float


def candidates(model: Model, count: int) -> list[tuple[int, float]]:
    """The features that `features find` ranks first by sentences about the concept, each with its AUC on the others.

    Args:
        model: with one SAE.
        count: the number of features.
    """
    found = find(model, ABOUT, AGAINST, pool="mean", count=8 * count, examples=0).contrast.features
    return [(one.feature, one.auc) for one in found if one.more == "about"][:count]


def trials(
    found: Iterable[tuple[int, float]], strengths: Sequence[float], ask: Callable[[int | None, float], list[str]]
) -> list[Trial]:
    """Every candidate at every strength.

    Args:
        found: features, each with its AUC.
        strengths: multiples of the largest activation.
        ask: gives the answers where so much is added to a feature; None: where nothing is.

    >>> [trial] = trials([(3, 0.9)], [1.5], lambda feature, _: ["Bake it."] if feature is None else ["Go online."])
    >>> trial.naming, trial.distinct
    (1, 1.0)
    """
    plain = distinct_2(ask(None, 0.0))
    made = []
    for feature, auc in found:
        for times in strengths:
            got = ask(feature, times)
            naming = sum(bool(named(text)) for text in got)
            made.append(Trial(feature, times, auc, naming, distinct_2(got) / max(plain, 1e-9)))
    return made


def best(made: Sequence[Trial], questions: int) -> Trial:
    """The trial with the most varied answers, of those that name the concept often enough.

    Args:
        made: the trials.
        questions: that each was asked.

    Raises:
        ValueError: no answer of any trial names the concept.

    >>> best([Trial(3, 1.0, 0.9, 8, 0.9), Trial(5, 2.0, 0.9, 10, 0.4)], 10).feature
    3
    """
    often = [one for one in made if one.naming >= SHARE * questions]
    if often:
        return max(often, key=lambda one: one.distinct)
    most = max(made, key=lambda one: (one.naming, one.distinct))
    if not most.naming:
        raise ValueError("no edit makes an answer name the concept; fit the SAE on other text")
    return most
