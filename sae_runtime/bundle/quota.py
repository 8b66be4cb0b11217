"""The limits of feature choice: on how many tokens of a batch each feature may be active.

The limits are our design, since the abstract of arXiv:2411.02124 gives no formula. The density of a feature is the
share of the tokens on which it is active.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 1 / 30  # of max_density: the density that a served feature keeps, even if its values are small
FIT_FEATURES = 20  # active features that a fit needs
_STEEPEST = 2.0  # largest exponent of a fit


@dataclass(frozen=True, kw_only=True)
class Quota:
    """A Zipf-Mandelbrot law: the quota of the feature of rank r is proportional to (r + offset)^-exponent.

    With exponent 0 all quotas are equal. slack is max_density over quota. With slack 1 each feature gets exactly
    its quota of tokens; with a large slack no limit matters, which is mutual choice.

    Raises:
        ValueError: a number is out of range.
    """

    exponent: float
    offset: float = 0.0
    slack: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.exponent <= 10 and 0 <= self.offset < 1e12 and 0 < self.slack < 1e12):
            raise ValueError(
                f"quota expects exponent in [0, 10], offset >= 0 and slack > 0, got exponent={self.exponent}, "
                f"offset={self.offset}, slack={self.slack}"
            )


def quotas(quota: Quota, k: float, d_sae: int) -> NDArray[np.float64]:
    """The quota of each feature, by falling quota: float64 [d_sae], each at most 1, with sum k.

    A feature gets 1 if the law would give it more. The others divide the rest in proportion to the law.

    Args:
        quota: the law.
        k: matches a token.
        d_sae: number of features.

    Raises:
        ValueError: k is not in (0, d_sae].

    >>> quotas(Quota(exponent=1.0), k=2.0, d_sae=4).round(3)
    array([0.96, 0.48, 0.32, 0.24])
    """
    if not 0 < k <= d_sae:
        raise ValueError(f"k must be in (0, d_sae={d_sae}], got {k:g}")
    weight = np.arange(1, d_sae + 1, dtype=np.float64)
    weight = (weight + quota.offset) ** -quota.exponent
    # If the first h quotas are 1, the others sum to k - h. The right h is the first at which the next quota is <= 1.
    tail = np.cumsum(weight[::-1])[::-1]
    full = np.arange(d_sae)
    fits = (k - full) * weight <= tail * (1 + 1e-12)
    head = int(np.argmax(fits))
    density: NDArray[np.float64] = np.minimum((k - head) * weight / tail[head], 1.0)
    density[:head] = 1.0
    return density


def max_densities(quota: Quota, k: float, d_sae: int) -> NDArray[np.float64]:
    """The largest density of each feature, min(1, slack * quota): float64 [d_sae].

    >>> max_densities(Quota(exponent=1.0, slack=1.5), k=2.0, d_sae=4).round(3)
    array([1.  , 0.72, 0.48, 0.36])
    """
    return np.minimum(quota.slack * quotas(quota, k, d_sae), 1.0)


def total_matches(k: float, tokens: int) -> int:
    """The total matches M of a batch: round(k * tokens), half to even, in float64.

    >>> total_matches(2.5, 3)
    8
    """
    return int(np.rint(np.float64(k) * tokens))


def tokens_per_feature(max_density: NDArray[np.float64], tokens: int) -> NDArray[np.int64]:
    """The limit of each feature's matches in a batch, m = round(max_density * tokens), half to even: int64 [d_sae].

    >>> tokens_per_feature(np.array([1.0, 0.72, 0.01]), tokens=10)
    array([10,  7,  0])
    """
    return np.rint(max_density * tokens).astype(np.int64)


def sampled_tokens_per_feature(max_density: NDArray[np.float64], tokens: int, u: float) -> NDArray[np.int64]:
    """The limits of a training batch, rounded at random, so that a rare feature's limit is not 0 in every batch.

    With u uniform in [0, 1), each limit is the floor or the ceiling of max_density * tokens, and on average exactly
    max_density * tokens (systematic sampling). The sum over all features is off by less than 1.

    >>> [sampled_tokens_per_feature(np.array([0.25, 0.25, 0.25, 0.25]), tokens=2, u=u).tolist() for u in (0.0, 0.5)]
    [[0, 1, 0, 1], [1, 0, 1, 0]]
    """
    edges = np.floor(np.concatenate([[0.0], np.cumsum(max_density * tokens)]) + u)
    return np.clip(np.diff(edges), 0, tokens).astype(np.int64)


def fit(density: NDArray[np.float64]) -> tuple[float, float, float]:
    """The exponent, the offset and R^2 of the Zipf-Mandelbrot law that fits measured densities (our design).

    The fit is least squares of log density against log(rank + offset). It leaves out the first ranks, at most ten,
    whose densities are near 1, and the last tenth of the active features, whose densities are imprecise. Each rank has
    the weight 1 / rank, so that each octave of ranks counts equally. The exponent is at most 2. The first ranks can
    suggest a steeper law, which would leave hardly any matches to the last ranks.

    Args:
        density: the density of each feature, in any order, [d_sae].

    Raises:
        ValueError: fewer than 20 features are active.

    >>> law = quotas(Quota(exponent=0.8, offset=3.0), k=8.0, d_sae=500)
    >>> exponent, offset, r_squared = fit(law)
    >>> round(exponent, 1), round(r_squared, 2)
    (0.8, 1.0)
    """
    falling = np.sort(density[density > 0])[::-1].astype(np.float64)
    if len(falling) < FIT_FEATURES:
        raise ValueError(
            f"a Zipf fit needs at least {FIT_FEATURES} active features, got {len(falling)}; train for longer"
        )
    keep = slice(min(len(falling) // 10, 10), len(falling) - len(falling) // 10)
    rank = np.arange(1, len(falling) + 1, dtype=np.float64)[keep]
    weight = 1 / rank
    weight /= weight.sum()
    target = np.log(falling[keep])
    target -= weight @ target
    spread = float(weight @ target**2)
    best = (0.0, 0.0, -np.inf)
    for offset in [0.0, *np.geomspace(0.5, 4 * len(falling), 60)]:
        x = np.log(rank + offset)
        x -= weight @ x
        weighted = weight * x
        along, square = float(weighted @ target), float(weighted @ x)
        slope = min(max(along / square, -_STEEPEST), 0.0)
        r_squared = 1 - (spread - slope * (2 * along - slope * square)) / max(spread, 1e-300)
        if r_squared > best[2]:
            best = (-slope, float(offset), r_squared)
    return best
