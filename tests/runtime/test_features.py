import numpy as np
import pytest

from sae_runtime.features import Features, from_slots

# Three tokens of five features; slots as the graphs give them: falling values, unused ones 0 with any index.
INDICES = np.array([[4, 1, 0], [2, 3, 3], [0, 2, 4]], np.int64)
VALUES = np.array([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0], [5.0, 4.0, 1.0]], np.float32)
DENSE = np.array([[0, 2, 0, 0, 3], [0, 0, 0, 0, 0], [5, 0, 4, 0, 1]], np.float32)


@pytest.fixture
def features() -> Features:
    return from_slots([(INDICES, VALUES)], 5, (3,))


def test_rows_are_compressed_with_ascending_features(features: Features) -> None:
    assert features.indptr.tolist() == [0, 2, 2, 5] and features.indptr.dtype == np.int64
    assert features.indices.tolist() == [1, 4, 0, 2, 4] and features.indices.dtype == np.int32
    assert features.values.tolist() == [2, 3, 5, 4, 1] and features.values.dtype == np.float32
    assert len(features) == 3
    np.testing.assert_array_equal(features.to_dense(), DENSE)


def test_runs_of_rows_of_different_widths_are_joined(features: Features) -> None:
    parts = [(INDICES[:1, :2], VALUES[:1, :2]), (INDICES[1:2, :1], VALUES[1:2, :1]), (INDICES[2:], VALUES[2:])]
    joined = from_slots(parts, 5, (3,))
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(features, name))


@pytest.mark.parametrize(("tokens", "shape"), [(3, (3,)), (3, (3, 1)), (3, (1, 3, 1)), (1, ())])
def test_leading_dimensions_are_kept(tokens: int, shape: tuple[int, ...]) -> None:
    features = from_slots([(INDICES[:tokens], VALUES[:tokens])], 5, shape)
    assert features.l0().shape == shape and features.l0().reshape(-1).tolist() == [2, 0, 3][:tokens]
    np.testing.assert_array_equal(features.to_dense(), DENSE[:tokens].reshape(*shape, 5))


def test_a_row_comes_by_falling_value(features: Features) -> None:
    ids, values = features.row(2)
    assert ids.tolist() == [0, 2, 4] and values.tolist() == [5, 4, 1]
    ids, values = features.row(0)
    assert ids.tolist() == [4, 1] and values.tolist() == [3, 2]
    assert features.row(1)[0].tolist() == []


def test_scipy_shares_the_memory(features: Features) -> None:
    matrix = features.to_scipy()
    np.testing.assert_array_equal(matrix.toarray(), DENSE)
    assert np.shares_memory(matrix.data, features.values)


def test_slots_come_back(features: Features) -> None:
    again = from_slots([features.to_slots(0, 2), features.to_slots(2, 3)], 5, (3,))
    np.testing.assert_array_equal(again.to_dense(), DENSE)
    indices, values = features.to_slots(1, 2)
    assert indices.shape == values.shape == (1, 1) and not values.any()
    assert features.to_slots(0, 3)[0].shape == (3, 3)
    assert indices.dtype == np.int64 and values.dtype == np.float32


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 4)])
def test_no_tokens(shape: tuple[int, ...]) -> None:
    features = from_slots([], 5, shape)
    assert len(features) == 0 and features.indptr.tolist() == [0]
    assert features.to_dense().shape == (*shape, 5) and features.l0().shape == shape
    assert features.to_slots(0, 0)[1].shape == (0, 1)
    assert features.indices.dtype == np.int32 and features.values.dtype == np.float32
