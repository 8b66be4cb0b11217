from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.checkpoints.stored import Stored, Tensors


def stored(array: NDArray[Any], name: str = "w") -> Stored:
    return Stored(file=Path("foreign"), name=name, shape=array.shape, open=lambda: array, block=20)


def whole(tensor: Stored) -> NDArray[np.float32]:
    out = np.full(tensor.shape, np.nan, np.float32)
    for rows, part in tensor.blocks():
        out[rows] = part
    return out


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_scaled_transpose_is_rounded_once(order: Any) -> None:
    rng = np.random.default_rng(0)
    array = np.asarray(rng.normal(size=(9, 7)).astype(np.float32), order=order)
    scale = rng.uniform(0.5, 2, 9)
    turned = stored(array).T.scaled(scale[None, :]).scaled(1 / 3)
    expected = array.T.astype(np.float64) * (scale[None, :] * (1 / 3))
    np.testing.assert_array_equal(whole(turned), expected.astype(np.float32))
    np.testing.assert_allclose(turned.row_norms(), np.linalg.norm(expected, axis=1), rtol=1e-14)
    vector = rng.normal(size=7)
    np.testing.assert_allclose(turned.times(vector), vector @ expected, rtol=1e-12)


def test_numbers_that_are_not_finite_or_too_large_are_refused_by_name() -> None:
    spoilt = np.ones((9, 7), np.float32)
    spoilt[8, 6] = np.nan
    with pytest.raises(ValueError, match="foreign: w holds NaN or Inf"):
        whole(stored(spoilt))
    with pytest.raises(ValueError, match="foreign: w holds NaN or Inf"):
        stored(spoilt).row_norms()
    signalling = np.full((9, 7), 0x7F800001, np.uint32).view(np.float32)  # a NaN that numpy warns of when it is cast
    with pytest.raises(ValueError, match="foreign: w holds NaN or Inf"):
        whole(stored(signalling))
    with pytest.raises(ValueError, match="foreign: w is beyond float32 when folded"):
        whole(stored(np.full((2, 2), 1e30)).scaled(1e30))
    with pytest.raises(ValueError, match="foreign: w is beyond float32 when folded"):
        whole(stored(np.zeros((2, 2))).scaled(np.array([[np.inf, 1.0]])))


def test_tensors_are_read_by_name_and_shape() -> None:
    tensors = Tensors(Path("foreign"), {"m": stored(np.ones((2, 3)), "m"), "s": stored(np.array(2.5), "s")})
    assert tensors.matrix("m", 2, 3).T.shape == (3, 2)
    assert (tensors.scalar("s"), tensors.rank("m")) == (2.5, 2)
    with pytest.raises(ValueError, match=r"foreign: m has shape \[2, 3\], expected \[any, 4\]"):
        tensors.matrix("m", columns=4)
    with pytest.raises(ValueError, match=r"foreign: m has shape \[2, 3\], expected \[6\]"):
        tensors.vector("m", 6)
    with pytest.raises(ValueError, match=r"m has shape \[2, 3\], expected \[1\]"):
        tensors.scalar("m")
    with pytest.raises(ValueError, match="foreign lacks the tensor b"):
        tensors.vector("b", 3)
    with pytest.raises(ValueError, match="foreign holds s, which such an SAE does not have"):
        tensors.refuse_others("m")
