"""derived.safetensors, held against the weights that it is derived from.

A stranger's hashes fit the stranger's file, so a number in it could hide a feature from `encode_exact.onnx`, or bend
what `steer.onnx` does. All that is asked for here holds for every file of our exporter, so no sound file is refused.
The cost has to be small beside the file's hash. So W_enc_rows and the numbers of each feature are compared through a
random vector, which nobody knows in advance, and the int8 and float16 rows for some features that are drawn each time.
`load(rebuild=True)` leaves nothing to chance: it does not read the file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.contract import check_order
from sae_runtime.bundle.graphs import GROUP
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.quota import max_densities

_SAMPLED = 1 << 17  # int8 or float16 numbers that are compared
_VECTORS = 8  # random ones, for these
_NEAR = 3e-5  # of two sums in float32; where they differ by more, the numbers themselves are compared
_ROOM = 1 + 1e-4  # more than float32 loses of a bound
_ROUNDING = 2.0**-24  # of a float32 number
_LEVELS, _TINY = 127, 1e-29  # the largest int8 number of each feature, and the scale of one that is 0
_ERROR_SCALE = 256.0  # of |e| in float16

Arrays = Mapping[str, NDArray[Any]]


def fault_of_derived(derived: Arrays, weights: Arrays, manifest: Manifest) -> str | None:
    """What of the derived weights does not follow from the weights, or None.

    Args:
        derived: the arrays of derived.safetensors.
        weights: of `Bundle.weights`.
        manifest: of the bundle.

    Raises:
        ValueError: int8_order does not list each feature once.

    >>> weights = sae._bundle.weights()
    >>> fault_of_derived({"W_enc_rows": weights["W_enc"].T}, weights, sae.manifest)
    >>> fault_of_derived({"W_enc_rows": weights["W_enc"].T * np.float32(1.01)}, weights, sae.manifest)
    'W_enc_rows is not W_enc transposed'
    """
    d_in, d_sae = weights["W_enc"].shape
    for name, (dtype, shape) in _shapes(d_in, d_sae).items():
        if name in derived and (derived[name].dtype != dtype or derived[name].shape != shape):
            return f"{name} is {derived[name].dtype} {list(derived[name].shape)}, expected {dtype} {list(shape)}"
    rng = np.random.default_rng()
    with np.errstate(all="ignore"):
        faults = [_fault_of_density(derived, manifest)]
        if "W_enc_rows" in derived:
            x = rng.standard_normal((1, d_in)).astype(np.float32)[0]
            z: NDArray[np.float32] = x @ weights["W_enc"]
            faults.append(_fault_of_rows(derived["W_enc_rows"], weights["W_enc"], x, z))
            if derived.keys() >= {name for name in _shapes(d_in, d_sae) if name.startswith("int8")}:
                check_order(derived["int8_order"], d_sae)
                faults += [_fault_of_int8(derived, weights, x, z), _fault_of_integers(derived, weights, rng)]
            if derived.keys() >= {"half_weights", "half_kappa"}:
                faults.append(_fault_of_half(derived, weights, rng))
    return next((fault for fault in faults if fault is not None), None)


def _shapes(d_in: int, d_sae: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array; `exports/derived.py` says what they are."""
    channels, half_channels, groups = d_in + -d_in % 4, -(-(d_in + 3) // 8) * 8, d_sae // GROUP
    return {
        "max_density": ("float64", (d_sae,)),
        "W_enc_rows": ("float32", (d_sae, d_in)),
        "int8_centre": ("float32", (d_in,)),
        "int8_map": ("float32", (d_in, channels)),
        "int8_rounding": ("float32", (1,)),
        "int8_direct": ("float32", (1,)),
        "int8_order": ("int64", (d_sae,)),
        "int8_weights": ("int8", (channels, d_sae)),
        "int8_scale": ("float32", (d_sae,)),
        "int8_bias": ("float32", (groups, GROUP)),
        "int8_bound": ("float32", (2, groups)),
        "int8_share": ("float32", (groups, GROUP)),
        "half_weights": ("float16", (half_channels, d_sae)),
        "half_kappa": ("float32", (1,)),
    }


def _fault_of_density(derived: Arrays, manifest: Manifest) -> str | None:
    if "max_density" not in derived:
        return None
    allocation = manifest.allocation
    if allocation is not None and allocation.quota is not None:
        expected = max_densities(allocation.quota, allocation.k, manifest.architecture.d_sae)
        if np.allclose(derived["max_density"], expected, rtol=1e-6, atol=0):
            return None
    return "max_density is not that of the allocation"


def _fault_of_rows(
    rows: NDArray[Any], W_enc: NDArray[Any], x: NDArray[np.float32], z: NDArray[np.float32]
) -> str | None:
    unlike = np.flatnonzero(~(np.abs(rows @ x - z) <= _NEAR * np.abs(z)))
    return None if np.array_equal(rows[unlike], W_enc[:, unlike].T) else "W_enc_rows is not W_enc transposed"


def _fault_of_int8(derived: Arrays, weights: Arrays, x: NDArray[np.float32], z: NDArray[np.float32]) -> str | None:
    """The fault of the int8 numbers of each feature: (1), (2) and (5) of docs/reference/certified-encoding.md."""
    order, scale = derived["int8_order"], derived["int8_scale"]
    length, loss = (derived["int8_bound"][:, :, None] * derived["int8_share"] * _ROOM).reshape(2, -1)
    v, z = x @ derived["int8_map"], np.abs(z[order])
    size = np.linalg.norm(v)
    if not (derived["int8_rounding"] * _ROOM >= size / np.linalg.norm(x) * len(x) * _ROUNDING).all():
        return "int8_rounding is below the rounding of float32"
    if not (derived["int8_direct"] >= 0).all():
        return "int8_direct is no ratio"
    if not ((z <= size * length) & (0 <= scale) & (_LEVELS * scale <= length + loss + _TINY)).all():
        return "int8_bound, int8_share or int8_scale do not fit W_enc"
    if not (z <= _ROOM * _LEVELS * np.abs(v).sum() * scale + size * loss).all():
        return "int8_scale does not fit W_enc"
    bias, b_enc = derived["int8_bias"].ravel(), weights["b_enc"][order]
    from_b_pre = derived["int8_centre"].astype(np.float64) - weights["b_pre"]
    expected = b_enc + (from_b_pre.astype(np.float32) @ weights["W_enc"])[order]
    low = np.flatnonzero(~(bias >= expected - _NEAR * (np.abs(bias) + np.abs(b_enc))))
    exact = b_enc[low] + from_b_pre @ weights["W_enc"][:, order[low]].astype(np.float64)
    return None if (bias[low] >= exact - 1e-6 * np.abs(exact)).all() else "int8_bias is below the bias"


def _fault_of_integers(derived: Arrays, weights: Arrays, rng: "np.random.Generator") -> str | None:
    """The fault of the int8 rows of some features: what they lose of a random vector, equation (3)."""
    d_in, d_sae = weights["W_enc"].shape
    x = rng.standard_normal((_VECTORS, d_in)).astype(np.float32)
    place = _some(rng, d_in, d_sae)
    w = weights["W_enc"][:, derived["int8_order"][place]]
    v = x @ derived["int8_map"]
    stored = v @ (derived["int8_weights"][:, place] * derived["int8_scale"][place])
    loss = (derived["int8_bound"][1, place // GROUP] * derived["int8_share"].ravel()[place]) * _ROOM
    room = np.linalg.norm(v, axis=1, keepdims=True) * loss
    room = room + _NEAR * np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(w, axis=0)
    return None if (np.abs(x @ w - stored) <= room).all() else "int8_weights do not fit W_enc"


def _fault_of_half(derived: Arrays, weights: Arrays, rng: "np.random.Generator") -> str | None:
    """The fault of the float16 rows: biases of all features, and the others of some, equation (12)."""
    d_in, d_sae = weights["W_enc"].shape
    half, kappa = derived["half_weights"], float(derived["half_kappa"][0])
    bias = (weights["b_enc"] - weights.get("threshold", np.float32(0))).astype(np.float64)
    rest = half[d_in + 2].astype(np.float64)
    if not (kappa > 0 and (np.abs(half[d_in].astype(np.float64) * kappa - bias) <= rest * kappa * _ROOM).all()):
        return "half_weights or half_kappa do not fit b_enc"
    some = _some(rng, d_in, d_sae)
    w, stored = weights["W_enc"][:, some].astype(np.float64), half[:, some].astype(np.float64)
    length = np.sqrt((w**2).sum(axis=0) + (bias[some] / kappa) ** 2)
    fits = (np.linalg.norm(w - stored[:d_in], axis=0) <= stored[d_in + 2] * _ROOM) & (
        length <= stored[d_in + 1] * _ERROR_SCALE * _ROOM
    )
    return None if fits.all() and not stored[d_in + 3 :].any() else "half_weights do not fit W_enc"


def _some(rng: "np.random.Generator", d_in: int, d_sae: int) -> NDArray[np.int64]:
    return np.sort(rng.permutation(d_sae)[: max(_SAMPLED // d_in, 16)])
