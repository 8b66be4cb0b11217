"""Fold what other libraries compute beyond `manifest.Architecture` into the weights: exact algebra in float64."""

import numpy as np

from sae_runtime.checkpoints.stored import Double, Stored

_LOST = 2.0**14  # a factor that leaves 10 of float32's 24 bits for the gate


def gated(w_enc: Stored, b_gate: Double, b_mag: Double, r_mag: Double) -> tuple[Stored, Double, Double]:
    """W_enc [d_in, d_sae], b_enc [d_sae] and threshold [d_sae] of a gated SAE (arXiv:2404.16014).

    Gate and value share p, the product of the activation and W_enc. The gate is open where p + b_gate > 0, and the
    value is p e^r_mag + b_mag. So the gate is open where the value exceeds b_mag - b_gate e^r_mag. A feature is active
    only if its value is positive too.

    Args:
        w_enc: [d_in, d_sae].
        b_gate: [d_sae].
        b_mag: [d_sae].
        r_mag: [d_sae].

    Raises:
        ValueError: the value hardly depends on p, so that float32 would lose the gate.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # `assemble` refuses such numbers when it rounds them
        stretch = np.exp(r_mag)
        lost = b_mag > _LOST * stretch
        if lost.any():
            raise ValueError(
                f"{w_enc.file}: r_mag of feature {int(np.argmax(lost))} is so small beside its b_mag that float32 "
                "cannot tell whether its gate is open; it cannot be served"
            )
        return w_enc.scaled(stretch[None, :]), b_mag, np.maximum(b_mag - b_gate * stretch, 0)


def decoder_lengths(w_dec: Stored) -> Double:
    """The length of each decoder row, [d_sae].

    Raises:
        ValueError: a decoder row is 0.
    """
    lengths = w_dec.row_norms()
    if not lengths.all():
        raise ValueError(
            f"{w_dec.file}: {w_dec.name} is 0 at feature {int(np.argmin(lengths))}, and its library divides by it"
        )
    return lengths


def unit_decoder(w_enc: Stored, b_enc: Double, w_dec: Stored) -> tuple[Stored, Double, Stored]:
    """W_enc, b_enc and W_dec of the same SAE with decoder rows of length 1; features are multiplied by the lengths.

    Raises:
        ValueError: a decoder row is 0.
    """
    lengths = decoder_lengths(w_dec)
    return w_enc.scaled(lengths[None, :]), b_enc * lengths, w_dec.scaled(1 / lengths[:, None])


def without_mean(w_enc: Stored, b_enc: Double, b_dec: Double | None) -> tuple[Stored, Double]:
    """W_enc [d_in, d_sae] and b_enc [d_sae] that give, for x [d_in], what the given ones give for x less its mean.

    (x - mean - b_dec) W_enc = x (W_enc - the mean of its rows) - b_dec W_enc.

    Args:
        w_enc: [d_in, d_sae].
        b_enc: [d_sae].
        b_dec: [d_in], the pre-bias, which goes into b_enc; None if there is none.
    """
    if b_dec is not None:
        b_enc = b_enc - w_enc.times(b_dec)
    return less_mean(w_enc, axis=0), b_enc


def less_mean(matrix: Stored, *, axis: int) -> Stored:
    """A matrix less the mean of its rows (axis 0) or of its columns (axis 1)."""
    mean: Double
    if axis == 0:
        mean = matrix.times(np.full(matrix.shape[0], 1 / matrix.shape[0]))[None, :]
    else:
        mean = np.concatenate([part.mean(axis=1, keepdims=True) for _, part in matrix.doubles()])
    return matrix.shifted(-mean)


def mean_of(w_dec: Stored) -> Stored:
    """The W_skip [d_in, d_in] that adds an activation's mean to the reconstruction of an SAE with this W_dec."""
    d_in = w_dec.shape[1]
    every = np.broadcast_to(1 / d_in, (d_in, d_in))
    return Stored(file=w_dec.file, name="W_skip", shape=every.shape, open=lambda: every)
