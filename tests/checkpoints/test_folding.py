"""The algebra on small whole numbers, which floats hold exactly, also at gates that are just closed."""

from pathlib import Path

import numpy as np
import pytest

from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.stored import Stored

RNG = np.random.default_rng(0)


def stored(array: np.ndarray) -> Stored:
    return Stored(file=Path("foreign"), name="w", shape=array.shape, open=lambda: array)


def whole(tensor: Stored) -> np.ndarray:
    out = np.zeros(tensor.shape)
    for rows, part in tensor.doubles():
        out[rows] = part
    return out


def test_a_gate_becomes_a_threshold_that_is_as_strict() -> None:
    w_enc = RNG.integers(-2, 3, (6, 40)).astype(np.float64)
    b_gate, b_mag = (RNG.integers(-3, 4, 40).astype(np.float64) for _ in range(2))
    p = RNG.integers(-2, 3, (500, 6)) @ w_enc
    expected = (p + b_gate > 0) * np.maximum(p + b_mag, 0)
    assert ((p + b_gate == 0) & (p + b_mag > 0)).any(), "no gate is just closed, so this test shows nothing"
    folded, b_enc, threshold = folding.gated(stored(w_enc), b_gate, b_mag, np.zeros(40))
    np.testing.assert_array_equal(whole(folded), w_enc)
    h = p + b_enc
    np.testing.assert_array_equal(h * (h > threshold), expected)


def test_a_gate_with_r_mag_becomes_a_threshold() -> None:
    w_enc, r_mag = RNG.normal(size=(6, 40)), RNG.normal(size=40)
    b_gate, b_mag, pre = RNG.normal(size=40), RNG.normal(size=40), RNG.normal(size=(500, 6))
    expected = (pre @ w_enc + b_gate > 0) * np.maximum(pre @ (w_enc * np.exp(r_mag)) + b_mag, 0)
    folded, b_enc, threshold = folding.gated(stored(w_enc), b_gate, b_mag, r_mag)
    h = pre @ whole(folded) + b_enc
    np.testing.assert_allclose(h * (h > threshold), expected, atol=1e-12)


def test_decoder_lengths_become_factors_of_the_features() -> None:
    w_enc, w_dec, b_enc = RNG.normal(size=(6, 40)), RNG.normal(size=(40, 6)), RNG.normal(size=40)
    lengths = folding.decoder_lengths(stored(w_dec))
    encoder, bias, decoder = folding.unit_decoder(stored(w_enc), b_enc, stored(w_dec))
    x = RNG.normal(size=(9, 6))
    before, after = np.maximum(x @ w_enc + b_enc, 0), np.maximum(x @ whole(encoder) + bias, 0)
    np.testing.assert_allclose(after, before * lengths, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(after @ whole(decoder), before @ w_dec, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(whole(decoder), axis=1), 1)
    w_dec[3] = 0
    with pytest.raises(ValueError, match="w is 0 at feature 3"):
        folding.unit_decoder(stored(w_enc), b_enc, stored(w_dec))


def test_a_gate_that_float32_would_lose_is_refused() -> None:
    w_enc, r_mag = RNG.normal(size=(6, 40)), np.zeros(40)
    r_mag[9] = -12.0
    with pytest.raises(ValueError, match="foreign: r_mag of feature 9 is so small beside its b_mag"):
        folding.gated(stored(w_enc), np.zeros(40), np.ones(40), r_mag)
    folding.gated(
        stored(w_enc), np.zeros(40), -np.ones(40), r_mag
    )  # the value is hardly ever positive, so the gate does not matter
