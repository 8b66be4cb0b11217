"""Drawing tokens, compared with chances that plain numpy computes, and held-back text."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.generation.sampling import Sampler, Sampling
from sae_runtime.generation.stopping import Stopping


def chances(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The chance of each token, by sorting all of them."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    p = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    p[sampling.top_k or len(p) :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= sampling.top_p] = 0
    found = np.zeros(len(p))
    found[order] = p / p.sum()
    return found


@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 30.0, "top_p": 0.999},  # nearly all of 5,000 tokens
        {"temperature": 1.0, "top_p": 0.5, "top_k": 5},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_k": 1_000_000},
    ],
)
def test_tokens_are_drawn_with_their_chances(size: int, settings: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).standard_normal(size).astype(np.float32) * 3
    logits[:4] = logits.max()  # ties
    logits[-1] = -np.inf
    sampling = Sampling(**settings, seed=5)
    p = chances(logits, sampling)
    sampler, draws = Sampler(sampling), 3000
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=size)
    assert not counts[p == 0].any()
    # Each count is binomial; with these seeds none is 5 deviations off.
    assert (np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)) + 3).all()


def test_the_most_likely_token_is_the_first_of_equal_ones() -> None:
    logits = np.array([1, 3, 3, -np.inf], np.float32)
    assert Sampler(Sampling()).choose(logits) == 1
    assert Sampler(Sampling(temperature=1e-300)).choose(np.array([1, 3, 2], np.float32)) == 1
    assert Sampler(Sampling(temperature=1.0, top_k=1, seed=0)).choose(logits) == 1


def test_a_seed_decides_the_tokens() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    one, same, other = (Sampler(Sampling(temperature=1.0, seed=seed)) for seed in (4, 4, 5))
    drawn = [[sampler.choose(logits) for _ in range(30)] for sampler in (one, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    free = [[Sampler(Sampling(temperature=1.0)).choose(logits) for _ in range(30)] for _ in range(2)]
    assert free[0] != free[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 to 1,000, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 to 1,000, got nan"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"top_k": 0}, "top_k must be None or a whole number from 1 on, got 0"),
        ({"top_k": 2.5}, "top_k must be None or a whole number"),
        ({"seed": -1}, "seed must be None or a whole number from 0 on, got -1"),
        ({"seed": True}, "seed must be None or a whole number"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        (["###"], ["one #", "# two ##", "# three"], "one ## two "),
        (["abab"], ["ab", "a", "ac"], "abaac"),  # the beginning of a stop string that does not come
        (["aab"], ["aa", "ab", "x"], "a"),
        (["stop", "top"], ["x s", "top"], "x "),
        (["b", "abc"], ["a", "b"], "a"),
        (["long stop"], ["a long", " sto"], "a long sto"),  # complete where nothing follows
        ([], ["any", "thing"], "anything"),
    ],
)
def test_text_up_to_a_stop_string_is_shown_whole(stop: list[str], pieces: list[str], shown: str) -> None:
    stopping, got = Stopping(stop), ""
    for piece in pieces:
        got += stopping.push(piece)
        assert shown.startswith(got)
        if stopping.found:
            break
    assert got + stopping.rest() == shown
    assert stopping.found == any(one in "".join(pieces) for one in stop)
