"""The features of a deployed model that tell two sets of texts apart, and where in the texts they are strongest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate
from sae_runtime.core.progress import progress_bar
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.extraction.contrast import Contrast, contrast
from sae_runtime.model import Model

Pool = Literal["max", "mean", "sum"]
_AT_ONCE = 256  # texts whose tokens' features are held at a time


@dataclass(frozen=True)
class Example:
    """Where a feature is strongest in a text.

    Attributes:
        text: the number of the text, first those of about, then those of against.
        begin, end: the token's characters.
        value: the feature's activation on it.
    """

    text: int
    begin: int
    end: int
    value: float


@dataclass(frozen=True)
class Found:
    """Ranked features of an SAE, with examples.

    Attributes:
        sae: the name of the SAE.
        contrast: the ranking, with its figures.
        examples: of each ranked feature, the tokens where it is strongest, each of another text.
        texts: the texts that were compared, those of about first.
        twice: the number of texts that were left out because they had come before in their set.
        in_both: the number of texts that were left out because both sets have them.
    """

    sae: str
    contrast: Contrast
    examples: tuple[tuple[Example, ...], ...]
    texts: tuple[str, ...]
    twice: int
    in_both: int


def find(
    model: Model,
    about: Sequence[str],
    against: Sequence[str],
    *,
    sae: str | None = None,
    pool: Pool = "max",
    count: int = 10,
    examples: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Found:
    """Find the features of a model's SAE that tell texts about something from others.

    A text that comes twice in a set counts once, and one that is in both sets does not count: else the texts that
    measure a feature would not be others than those that ranked it. Memory grows with the matches.

    Args:
        model: a deployed model with an SAE.
        about: the first set of texts.
        against: the second set.
        sae: the name of the SAE; None: the only one.
        pool: how the activations on the tokens of a text become one number.
        count: the number of features to give.
        examples: the number of texts to show for each.
        seed: of the halves that rank and measure.
        progress: show progress on stderr.

    Raises:
        ValueError: a set has no text of its own, the model has no such SAE or several, or there is no such `pool`.

    >>> files, cakes = ["Open the file", "Close the file"], ["Bake a cake", "Eat it"]
    >>> find(model, files, cakes).contrast.measured_on  # doctest: +SKIP
    (1, 1)
    """
    sets = [list(dict.fromkeys(texts)) for texts in (about, against)]
    both = set(sets[0]) & set(sets[1])
    sets = [[text for text in texts if text not in both] for texts in sets]
    for name, given, own in zip(("about", "against"), (about, against), sets, strict=True):
        if not given:
            raise ValueError(f"there are no texts {name}; give some")
        if not own:
            other = "against" if name == "about" else "about"
            raise ValueError(f"each of the {len(given)} texts {name} is also {other}; give texts that differ")
    texts = [text for each in sets for text in each]
    parts: list[Features] = []
    with progress_bar(len(texts), "texts", shown=progress) as bar:
        for begin in range(0, len(texts), _AT_ONCE):
            seen = model.features(texts[begin : begin + _AT_ONCE])
            parts += [_row(one.pooled(pool, sae=sae)) for one in seen]
            bar.update(len(seen))
    pooled = concatenate(parts, parts[0].d_sae, (len(texts),))
    ranking = contrast(pooled, np.arange(len(texts)) < len(sets[0]), count=count, seed=seed)
    return Found(
        sae=sae or next(name for name, one in model.saes.items() if one.reads),
        contrast=ranking,
        examples=_examples(model, sae, texts, pooled, [one.feature for one in ranking.features], examples),
        texts=tuple(texts),
        twice=len(about) + len(against) - len(texts) - 2 * len(both),
        in_both=len(both),
    )


def _row(pooled: NDArray[np.float32]) -> Features:
    """The features of a text, [1], of one number for each feature."""
    active = np.flatnonzero(pooled)
    return Features(np.array([0, len(active)]), active.astype(np.int32), pooled[active], len(pooled), (1,))


def _examples(
    model: Model, sae: str | None, texts: Sequence[str], pooled: Features, features: Sequence[int], count: int
) -> tuple[tuple[Example, ...], ...]:
    """Where each feature is strongest, in the texts with its largest pooled values."""
    rows = np.repeat(np.arange(len(texts)), np.diff(pooled.indptr))
    best: dict[int, list[int]] = {}
    for feature in features:
        own = np.flatnonzero(pooled.indices == feature)
        best[feature] = rows[own[np.argsort(-pooled.values[own], kind="stable")[:count]]].tolist()
    needed = sorted({text for numbers in best.values() for text in numbers})
    seen = dict(zip(needed, model.features([texts[number] for number in needed]), strict=True))
    return tuple(
        tuple(Example(text, *found) for text in best[feature] if (found := strongest(seen[text], feature, sae=sae)))
        for feature in features
    )


def strongest(seen: TextFeatures, feature: int, *, sae: str | None = None) -> tuple[int, int, float] | None:
    """Where a feature is strongest on the tokens of a text, without special ones.

    Args:
        seen: the features of the text.
        feature: the number of the feature.
        sae: the name of the SAE; None: the only one.

    Returns:
        The token's first character, the one after its last, and the activation; None where the feature is not active.

    >>> strongest(model.features("Open the file"), 3)  # doctest: +SKIP
    """
    features = seen.features if sae is None else seen.saes[sae]
    tokens = np.repeat(np.arange(len(seen)), np.diff(features.indptr))
    own = np.flatnonzero((features.indices == feature) & ~seen.special[tokens])
    if not len(own):
        return None
    match = own[np.argmax(features.values[own])]
    begin, end = seen.offsets[tokens[match]].tolist()
    return begin, end, float(features.values[match])
