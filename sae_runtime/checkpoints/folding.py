"""Fold what foreign SAEs compute beyond `manifest.Architecture` into their weights: exact algebra in float64."""

import numpy as np

from sae_runtime.checkpoints.stored import Double, Stored

_LOST = 2.0**14  # a factor that leaves 10 of float32's 24 bits for the gate


def gated(w_enc: Stored, b_gate: Double, b_mag: Double, r_mag: Double) -> tuple[Stored, Double, Double]:
    """W_enc, b_enc and threshold of a gated SAE (arXiv:2404.16014), which shares the encoder's directions p.

    The gate is open where p + b_gate > 0, and the value is p e^r_mag + b_mag. So the gate is open where the value
    exceeds b_mag - b_gate e^r_mag. A value that is not positive is not a feature, even if its gate is open.

    Raises:
        ValueError: the value hardly depends on p, so that float32 would lose the gate.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # `gather` refuses these when it rounds them
        stretch = np.exp(r_mag)
        lost = b_mag > _LOST * stretch
        if lost.any():
            raise ValueError(
                f"{w_enc.file}: r_mag of feature {int(np.argmax(lost))} is so small beside its b_mag that float32 "
                "cannot tell whether its gate is open; it cannot be served"
            )
        return w_enc.scaled(stretch[None, :]), b_mag, np.maximum(b_mag - b_gate * stretch, 0)


def decoder_lengths(w_enc: Stored, b_enc: Double, w_dec: Stored) -> tuple[Stored, Double, Stored, Double]:
    """W_enc, b_enc and W_dec with decoder rows of length 1 and features multiplied by the lengths; and the lengths.

    Raises:
        ValueError: a decoder row is 0.
    """
    lengths = w_dec.row_norms()
    if not lengths.all():
        raise ValueError(
            f"{w_dec.file}: {w_dec.name} is 0 at feature {int(np.argmin(lengths))}, and its library divides by it"
        )
    return w_enc.scaled(lengths[None, :]), b_enc * lengths, w_dec.scaled(1 / lengths[:, None]), lengths


def pre_bias(w_enc: Stored, b_enc: Double, b_pre: Double) -> Double:
    """The b_enc that has the effect of subtracting b_pre [d_in] from the input."""
    out: Double = b_enc - w_enc.times(b_pre)
    return out
