"""How the next token is chosen from logits: the largest, or drawn."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.arrays import as_number

_FEW = 256  # candidates that are sorted first; the most likely tokens nearly always are among them


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p: draw from the fewest of the most likely tokens that have this probability together.
        top_k: draw from so many of the most likely tokens; None: from all.
        seed: of this request's own random numbers; None: others each time.

    Raises:
        ValueError: a number is out of range.

    >>> Sampling(temperature=0.7, top_p=0.9, seed=1).top_p
    0.9
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature = as_number(self.temperature, "temperature")
        if not 0 <= temperature <= 1000:  # NaN is not
            raise ValueError(f"temperature must be 0 to 1,000, got {temperature}; 0 takes the most likely token")
        top_p = as_number(self.top_p, "top_p")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}; 1 draws from all tokens")
        for name, least in (("top_k", 1), ("seed", 0)):
            number = getattr(self, name)
            whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
            if number is not None and not (whole and number >= least):
                raise ValueError(f"{name} must be None or a whole number from {least} on, got {number!r}")


class Sampler:
    """Chooses the tokens of one request, by random numbers of its own.

    >>> Sampler(Sampling()).choose(np.array([0.0, 3.0, 1.0], np.float32))
    1
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The id of the next token, from finite or -Inf logits [vocabulary]; among equal ones the first is larger."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ids, chances = likely(logits, self._sampling)
        at = np.searchsorted(chances.cumsum(), self._random.random() * chances.sum(), side="right")
        return int(ids[min(int(at), len(ids) - 1)])


def likely(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, the most likely one first where not all may be, and their chances before scaling.

    Args:
        logits: f32 [vocabulary].
        sampling: with a temperature above 0.

    >>> likely(np.array([0, 3, 1], np.float32), Sampling(temperature=1.0, top_k=2))[0].tolist()
    [1, 2]
    """
    with np.errstate(over="ignore", under="ignore"):  # a temperature near 0
        scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
        chances = np.exp(scaled)
    if sampling.top_k is None and sampling.top_p == 1:
        return np.arange(len(logits)), chances
    most = min(len(logits), sampling.top_k or len(logits))
    total, count = chances.sum() if sampling.top_k is None else math.nan, _FEW
    while True:
        ids = _largest(scaled, min(most, count))
        if len(ids) == most:
            total = chances[ids].sum()
        before = chances[ids].cumsum() - chances[ids]
        kept = int(np.searchsorted(before, sampling.top_p * total, side="left"))
        if len(ids) == most or kept < len(ids):
            break
        count *= 8
    ids = ids[: max(kept, 1)]
    return ids, chances[ids]


def _largest(numbers: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The places of the `count` largest numbers, in falling order, the first of equal ones first."""
    if count < len(numbers):
        cut = np.partition(numbers, len(numbers) - count)[len(numbers) - count]
        above, equal = np.flatnonzero(numbers > cut), np.flatnonzero(numbers == cut)
        places = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    else:
        places = np.arange(len(numbers))
    return np.asarray(places[np.argsort(-numbers[places], kind="stable")])
