"""How many tokens each feature may match under feature choice (our design; the paper's abstract gives no formula)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 1 / 30  # of its cap: what a feature keeps when it is served, however small its values are
FIT_FEATURES = 20  # that must fire for a fit
_STEEPEST = 2.0  # exponent that a fit may give


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Zipf-Mandelbrot shares of the budget: feature of rank r gets a share in proportion to (r + offset)^-exponent.

    exponent 0 is uniform. slack multiplies every share: 1 fills every column (strict feature choice), and as it grows
    the caps cease to bind (mutual choice).
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


def shares(quota: Quota, k: float, d_sae: int) -> NDArray[np.float64]:
    """Expected matches per token of each feature, by falling rank: float64 [d_sae], each <= 1, summing to k.

    Where the law asks a head feature for more than every token, it gets every token and the rest is spread over the
    others in proportion.

    Raises:
        ValueError: k is not in (0, d_sae].
    """
    if not 0 < k <= d_sae:
        raise ValueError(f"k must be in (0, d_sae={d_sae}], got {k:g}")
    weight = np.arange(1, d_sae + 1, dtype=np.float64)
    weight = (weight + quota.offset) ** -quota.exponent
    # With the h largest shares at 1, the others sum to k - h; the right h is the first whose next share fits.
    tail = np.cumsum(weight[::-1])[::-1]
    full = np.arange(d_sae)
    fits = (k - full) * weight <= tail * (1 + 1e-12)
    head = int(np.argmax(fits))
    share: NDArray[np.float64] = np.minimum((k - head) * weight / tail[head], 1.0)
    share[:head] = 1.0
    return share


def caps(quota: Quota, k: float, d_sae: int) -> NDArray[np.float64]:
    """Largest share of the tokens that each feature may match: float64 [d_sae], cap = min(1, slack * share)."""
    return np.minimum(quota.slack * shares(quota, k, d_sae), 1.0)


def budget(k: float, tokens: int) -> int:
    """Matches that `tokens` tokens may spend at k a token: round(k * tokens), half to even, in float64."""
    return int(np.rint(np.float64(k) * tokens))


def tokens_per_feature(cap: NDArray[np.float64], tokens: int) -> NDArray[np.int64]:
    """Tokens each feature may match in a batch, m = round(cap * tokens), half to even: int64 [d_sae]."""
    return np.rint(cap * tokens).astype(np.int64)


def sampled_tokens_per_feature(cap: NDArray[np.float64], tokens: int, u: float) -> NDArray[np.int64]:
    """The same, rounded without bias for training, where a quota below one token must not always round to none.

    Systematic sampling: with u uniform in [0, 1), every feature gets floor or ceil of cap * tokens, in expectation
    exactly cap * tokens, and the sum over features is off by less than one token.
    """
    edges = np.floor(np.concatenate([[0.0], np.cumsum(cap * tokens)]) + u)
    return np.clip(np.diff(edges), 0, tokens).astype(np.int64)


def fit(density: NDArray[np.float64]) -> tuple[float, float, float]:
    """Exponent, offset and R^2 of the Zipf-Mandelbrot law that fits measured densities (our design).

    Least squares of log density against log(rank + offset), over the ranks between the first and the last tenth of
    the features that fired (the head saturates, the tail is under-used and badly counted), each weighted by 1 / rank so
    that every octave counts alike.

    Args:
        density: share of tokens on which each feature fires, any order, [d_sae].

    The exponent is kept within [0, 2]: a steeper law would starve the tail on the word of the head.

    Raises:
        ValueError: fewer than 20 features fired.
    """
    falling = np.sort(density[density > 0])[::-1].astype(np.float64)
    if len(falling) < FIT_FEATURES:
        raise ValueError(
            f"a Zipf fit needs at least {FIT_FEATURES} features that fired, got {len(falling)}; train for longer"
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
