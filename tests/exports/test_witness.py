import numpy as np
import pytest
import torch_witness
from conftest import K, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime.exports import witness
from sae_runtime.exports.witness import Matches

# The tests of each graph compare the witness with torch. These tests compare it with results by hand, and check that it
# notices faults.
Z = np.array([[5.0, 0.0, 3.0, 1.0], [4.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def kept(matches: Matches) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in matches.kept]


def slots(f: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    order = np.argsort(-f, axis=1, kind="stable")
    return order, np.take_along_axis(f, order, axis=1).astype(np.float32)


def test_the_witness_selects_the_matches_of_a_case_by_hand() -> None:
    assert kept(witness.token_choice(Z, 1)) == [[0], [0], []]
    assert kept(witness.token_choice(Z, 3)) == [[0, 2, 3], [0, 1, 2], []]
    assert kept(witness.threshold(Z, 2.0)) == [[0, 2], [0], []]
    assert kept(witness.threshold(Z, [4.0, 1.0, 2.5, 0.0])) == [[0, 2, 3], [1], []]
    assert kept(witness.joint(Z, 1.0)) == [[0, 2], [0], []]
    assert kept(witness.joint(Z, 0.5)) == [[0], [0], []]  # 1.5 to the even 2
    assert kept(witness.joint(Z, 4.0)) == [[0, 2, 3], [0, 1, 2], []]
    assert kept(witness.joint(Z, 4.0, np.array([1 / 3, 0.0, 1.0, 1.0]))) == [[0, 2, 3], [2], []]
    assert kept(witness.joint(Z, 1.0, None, np.array([False, True, True]))) == [[], [0, 1], []]


def test_the_witness_passes_matches_and_names_faults() -> None:
    weights, x = make_weights(150, "mutual"), make_x(7)
    z = witness.pre_activations(weights, x)
    matches = witness.joint(z, K)
    indices, values = slots(np.where(matches.kept, z, 0))
    assert witness.disagreement(matches, indices, values) is None
    assert (values[[1, 2], 0] > 0).all() and values[1, 1] > 0

    def fault(change: "dict[tuple[int, int], float]", ids: "dict[tuple[int, int], int] | None" = None) -> str:
        other_values, other_indices = values.copy(), indices.copy()
        for at, value in change.items():
            other_values[at] = value
        for at, number in (ids or {}).items():
            other_indices[at] = number
        return witness.disagreement(matches, other_indices, other_values) or ""

    assert "6 rows, expected 7" in (witness.disagreement(matches, indices[:6], values[:6]) or "")
    assert "not finite" in fault({(0, 0): np.nan})
    assert "not sorted" in fault({(2, 0): 0.0})
    last = int((values[1] > 0).sum()) - 1
    assert "1 wrong matches, the first at row 1" in fault({(1, last): 0.0})
    assert "1 wrong matches, the first at row 1" in fault({(1, last + 1): values[1, last] / 2})
    assert "twice in one row" in fault({(1, last + 1): values[1, last]}, {(1, last + 1): int(indices[1, last])})
    assert "off by" in fault({(1, 0): values[1, 0] * 1.0001})
    assert "wrong matches" in fault({}, {(1, 0): int(indices[1, -1])})


def test_the_witness_accepts_either_side_at_the_cut() -> None:
    z = np.array([[3.0, 2.0, 2.0 - 1e-7, 1.0]])
    matches = witness.token_choice(z, 2)
    assert kept(matches) == [[0, 1]]
    for second, agrees in ((1, True), (2, True), (3, False)):
        chosen = np.array([[0, second]])
        found = witness.disagreement(matches, chosen, np.take_along_axis(z, chosen, axis=1).astype(np.float32))
        assert (found is None) == agrees


def test_differences_are_relative_to_the_row() -> None:
    expected = np.array([[1000.0, 0.0], [1.0, 0.0]])
    assert witness.difference(expected, np.array([[1000, 0.005], [1, 0]], np.float32)) is None
    assert "5.0e-03" in (witness.difference(expected, np.array([[1000, 0], [1, 0.005]], np.float32)) or "")
    assert "shape (1, 2), expected (2, 2)" in (witness.difference(expected, np.zeros((1, 2), np.float32)) or "")
    assert witness.difference(expected, np.full((2, 2), np.nan, np.float32)) is not None


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pre_activations_have_the_shape_of_x(ndim: int) -> None:
    weights, x = make_weights(150, "token"), make_x(6)
    z = witness.pre_activations(weights, x.reshape(2, 3, -1)[:1, :1] if ndim == 3 else x[0] if ndim == 1 else x)
    expected = torch_witness.pre_activations(weights, x).numpy()
    assert z.shape[-1] == 150 and z.ndim == ndim and (z == 0).any() and (z > 0).any()
    np.testing.assert_allclose(z.reshape(-1, 150), expected[: z.size // 150], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_the_witness_notices_a_total_that_is_off_by_one(kind: str) -> None:
    z = witness.pre_activations(make_weights(150, "token"), make_x(7))
    max_density = np.full(150, 1 / 7)  # one token each

    def keep(spare: int) -> Matches:
        if kind == "token":
            return witness.token_choice(z, K - spare)
        return witness.joint(z, K - spare / 7, max_density if kind == "feature" else None)

    for spare in (1, -1):
        indices, values = slots(np.where(keep(spare).kept, z, 0))
        assert "wrong matches" in (witness.disagreement(keep(0), indices, values) or "")
    if kind == "feature":
        looser = witness.joint(z, K, max_density + 1 / 7)
        indices, values = slots(np.where(looser.kept, z, 0))
        assert "wrong matches" in (witness.disagreement(keep(0), indices, values) or "")


def test_a_row_that_cancels_may_lose_by_its_terms() -> None:
    """The products are 1e6 and -1e6 and their sum is 1: the last bits of a product are more than 1e-5 of the sum."""
    weights = {"W_enc": np.array([[1e3], [-1e3]]), "b_enc": np.zeros(1), "b_dec": np.zeros(2)}
    x = np.array([[1000.001, 1000.0]])
    lost, expected = witness.rounding(weights, x), witness.token_choice(witness.pre_activations(weights, x), 1)
    np.testing.assert_allclose(lost, [[2e-6 * 2000001]])
    found = np.array([[0]]), np.array([[1.06]], np.float32)
    assert "off by 6.0e-02" in (witness.disagreement(expected, *found) or "")
    assert witness.disagreement(expected, *found, lost) is None
    assert witness.disagreement(expected, found[0], np.zeros((1, 1), np.float32), lost) is None, "z is within the loss"
    assert witness.disagreement(expected, found[0], np.array([[6.0]], np.float32), lost) is not None
