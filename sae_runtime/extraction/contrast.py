"""Features ranked by how well they tell one set of texts from another, each measured on texts that did not rank it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.core.arrays import as_array
from sae_runtime.core.features import Features

_Z = 1.959964  # the two-sided 95 % point of the normal distribution


@dataclass(frozen=True, kw_only=True)
class RankedFeature:
    """How one feature differs between two sets of texts, about and against.

    Everything but `ranked_auc` is measured on the held-out texts, or on all of them where none could be held out.

    Attributes:
        feature: its number.
        more: "about" or "against": the set in which it is stronger, by the texts that ranked it.
        auc: the chance that it is stronger in a random text of `more` than in one of the other set; a tie counts half.
            1 tells the sets apart, 0.5 tells nothing, and less than 0.5 means that the held-out texts disagree.
        interval: a 95 % confidence interval of `auc`. Where it holds 0.5, the texts are too few to show anything.
        ranked_auc: the same on the texts that ranked it, where chance makes the best of many features look good.
        density: share of the texts of about and of against in which it is active.
        mean: its mean in a text of about and of against, 0 where it is not active.
        d: Cohen's d (1988), the difference of the means (about - against) by the pooled standard deviation; infinite
            where a feature has one value in each set, and these differ.
    """

    feature: int
    more: str
    auc: float
    interval: tuple[float, float]
    ranked_auc: float
    density: tuple[float, float]
    mean: tuple[float, float]
    d: float


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Ranked features, the best first, and the number of texts of about and of against behind them.

    Attributes:
        features: the ranked features.
        ranked_on: the texts that ranked the features.
        measured_on: the texts on which they were measured.
        held_out: whether these are other texts. A set of one text cannot be parted; then all texts do both, and the
            figures say nothing about other texts.
        active: the number of features that are active in any of the texts that ranked.
    """

    features: tuple[RankedFeature, ...]
    ranked_on: tuple[int, int]
    measured_on: tuple[int, int]
    held_out: bool
    active: int


def contrast(pooled: Features, about: ArrayLike, *, count: int = 20, seed: int = 0) -> Contrast:
    """Rank features by how well they tell the texts of one set from those of another.

    Half of each set, drawn at random, ranks the features by |AUC - 0.5|, then by the difference of the means. The other
    half measures those that are given. So the number of features that were compared cannot make an AUC look better
    than it is; few texts can, which the interval says. Equal texts belong into `pooled` once.

        AUC = (R - a (a + 1) / 2) / (a b), R the sum of the ranks of the a texts of about among all a + b

    is the statistic of Mann and Whitney (1947). The interval is method 5 of Newcombe (2006, Statistics in Medicine 25,
    559-573): the t with (AUC - t)^2 = z^2 V(t), by the variance of Hanley and McNeil (1982). It stays wide for few
    texts that a feature tells apart without an error.

    Args:
        pooled: one row for each text, [texts]; its values are activations pooled over the tokens of a text.
        about: bool [texts]: whether a text is in the first set.
        count: the number of features to give.
        seed: of the halves.

    Raises:
        ValueError: `about` does not fit the texts, a set is empty, or `count` is negative.

    >>> indices = np.array([3, 5, 3, 4, 3, 5, 3, 7, 5, 7, 4, 5, 5, 7, 4, 7], np.int32)
    >>> pooled = Features(np.arange(0, 17, 2), indices, np.ones(16, np.float32), d_sae=8, shape=(8,))
    >>> best = contrast(pooled, [True] * 4 + [False] * 4).features[0]
    >>> best.feature, best.more, best.auc, best.density, [round(end, 2) for end in best.interval]
    (3, 'about', 1.0, (1.0, 0.0), [0.39, 1.0])
    """
    sets = as_array(about, "about")
    if sets.dtype != np.bool_ or sets.shape != (len(pooled),):
        raise ValueError(f"about must be bool [{len(pooled)}], one for each text, got {sets.dtype} {list(sets.shape)}")
    sizes = int(sets.sum()), int((~sets).sum())
    if 0 in sizes:
        raise ValueError(f"features are ranked by two sets of texts, got {sizes[0]} about and {sizes[1]} against")
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    held_out = min(sizes) > 1
    ranking = _half(sets, seed) if held_out else np.ones(len(sets), bool)
    ranked, measured = (_measured(pooled, sets, part) for part in (ranking, ~ranking if held_out else ranking))
    # Rounding lets the means decide between areas that are equal but for their last bits.
    by_area, by_means = np.round(np.abs(ranked.auc - 0.5), 9), np.abs(ranked.means[0] - ranked.means[1])
    order = np.lexsort((-by_means, -by_area))
    active = ranked.counts.sum(axis=0) > 0
    return Contrast(
        features=tuple(_described(int(feature), ranked, measured) for feature in order[active[order]][:count]),
        ranked_on=ranked.sizes,
        measured_on=measured.sizes,
        held_out=held_out,
        active=int(active.sum()),
    )


def _half(about: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Bool [texts]: a random half of each set, without the middle one of an odd number."""
    chosen = np.zeros(len(about), bool)
    rng = np.random.default_rng(seed)
    for texts in (np.flatnonzero(about), np.flatnonzero(~about)):
        chosen[rng.permutation(texts)[: len(texts) // 2]] = True
    return chosen


@dataclass(frozen=True, eq=False)
class _Figures:
    """Of the texts of about (0) and of against (1) in one part: figures of every feature, [2, d_sae] or [d_sae]."""

    sizes: tuple[int, int]
    counts: NDArray[np.int64]
    means: NDArray[np.float64]
    spread: NDArray[np.float64]
    auc: NDArray[np.float64]


def _measured(pooled: Features, about: NDArray[np.bool_], part: NDArray[np.bool_]) -> _Figures:
    """The figures of the texts in `part`, bool [texts]."""
    features, against = pooled.take(np.flatnonzero(part)), ~about[part]
    features = features.filter(features.values > 0)
    sizes = int((~against).sum()), int(against.sum())
    n = np.array(sizes)[:, None]
    cell = np.repeat(against, np.diff(features.indptr)) * features.d_sae + features.indices  # of [2, d_sae]
    values = features.values.astype(np.float64)

    def added(weights: NDArray[np.float64] | None) -> NDArray[Any]:
        return np.bincount(cell, weights, 2 * features.d_sae).reshape(2, features.d_sae)

    counts, means = added(None), added(values) / n
    squares = added((values - means.reshape(-1)[cell]) ** 2) + (n - counts) * means**2
    spread = np.sqrt(squares.sum(axis=0) / max(sum(sizes) - 2, 1))
    return _Figures(sizes, counts, means, spread, _areas(features, against, counts))


def _areas(features: Features, against: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUC of every feature, [d_sae]. Texts without it are one tie below all others, so matches alone are sorted."""
    # The bits of positive floats ascend with them, so one number sorts by feature and then by value.
    key = features.indices.astype(np.uint64) << np.uint64(32) | features.values.astype(np.float32).view(np.uint32)
    order = np.argsort(key)
    key = key[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])  # of ties
    ends = np.append(begins, len(key))[1:]
    rank = np.repeat((begins + 1 + ends) / 2, ends - begins)  # the mean of a tie, among the matches of all features
    a, b, active = int((~against).sum()), int(against.sum()), counts.sum(axis=0)
    zeros = a + b - active
    rank += np.repeat(zeros - (np.cumsum(active) - active), active)  # among the texts
    is_about = ~np.repeat(against, np.diff(features.indptr))[order]
    feature = features.indices[order][is_about]
    ranks: NDArray[np.float64] = (
        np.bincount(feature, rank[is_about], features.d_sae) + (a - counts[0]) * (zeros + 1) / 2
    )
    return (ranks - a * (a + 1) / 2) / (a * b)


def _described(feature: int, ranked: _Figures, measured: _Figures) -> RankedFeature:
    more_about = ranked.auc[feature] >= 0.5
    auc, ranked_auc = (float(x.auc[feature]) if more_about else 1 - float(x.auc[feature]) for x in (measured, ranked))
    mean = float(measured.means[0, feature]), float(measured.means[1, feature])
    density = tuple(float(k / n) for k, n in zip(measured.counts[:, feature], measured.sizes, strict=True))
    return RankedFeature(
        feature=feature,
        more="about" if more_about else "against",
        auc=auc,
        interval=_interval(auc, *measured.sizes),
        ranked_auc=ranked_auc,
        density=(density[0], density[1]),
        mean=mean,
        d=_effect(mean, float(measured.spread[feature])),
    )


def _effect(mean: tuple[float, float], spread: float) -> float:
    """Cohen's d. What is below a billionth of the means is rounding: values are float32."""
    least = 1e-9 * max(mean)
    difference = mean[0] - mean[1]
    if abs(difference) <= least:
        return 0.0
    return difference / spread if spread > least else math.copysign(math.inf, difference)


def _interval(auc: float, a: int, b: int) -> tuple[float, float]:
    """The 95 % interval of Newcombe's method 5 for the area of a and b texts."""

    def outside(t: float) -> bool:
        more = ((1 - t) / (2 - t) + t / (1 + t)) * ((a + b) / 2 - 1)
        return (auc - t) ** 2 > _Z**2 * t * (1 - t) * (1 + more) / (a * b)

    def end(far: float) -> float:
        near = auc
        for _ in range(50):
            middle = (near + far) / 2
            near, far = (near, middle) if outside(middle) else (middle, far)
        return far

    return end(0.0), end(1.0)
