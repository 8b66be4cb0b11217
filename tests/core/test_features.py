import numpy as np
import pytest

from sae_runtime.core.features import Features, concatenate, from_slots

# Slots of three tokens as graphs give them: falling values, and 0 with any index in an unused slot.
INDICES = np.array([[4, 1, 0], [2, 3, 3], [0, 2, 4]], np.int64)
VALUES = np.array([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0], [5.0, 4.0, 1.0]], np.float32)
DENSE = np.array([[0, 2, 0, 0, 3], [0, 0, 0, 0, 0], [5, 0, 4, 0, 1]], np.float32)


@pytest.fixture
def features() -> Features:
    return from_slots([(INDICES, VALUES)], 5, (3,))


def test_from_slots_sorts_the_features_of_a_row(features: Features) -> None:
    assert features.indptr.tolist() == [0, 2, 2, 5] and features.indptr.dtype == np.int64
    assert features.indices.tolist() == [1, 4, 0, 2, 4] and features.indices.dtype == np.int32
    assert features.values.tolist() == [2, 3, 5, 4, 1] and features.values.dtype == np.float32
    assert len(features) == 3
    np.testing.assert_array_equal(features.to_dense(), DENSE)


def test_from_slots_joins_parts_with_different_numbers_of_slots(features: Features) -> None:
    parts = [(INDICES[:1, :2], VALUES[:1, :2]), (INDICES[1:2, :1], VALUES[1:2, :1]), (INDICES[2:], VALUES[2:])]
    joined = from_slots(parts, 5, (3,))
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(features, name))


@pytest.mark.parametrize(("tokens", "shape"), [(3, (3,)), (3, (3, 1)), (3, (1, 3, 1)), (1, ())])
def test_features_keep_the_leading_dimensions(tokens: int, shape: tuple[int, ...]) -> None:
    features = from_slots([(INDICES[:tokens], VALUES[:tokens])], 5, shape)
    assert features.l0().shape == shape and features.l0().reshape(-1).tolist() == [2, 0, 3][:tokens]
    np.testing.assert_array_equal(features.to_dense(), DENSE[:tokens].reshape(*shape, 5))


def test_row_is_in_order_of_falling_value(features: Features) -> None:
    ids, values = features.row(2)
    assert ids.tolist() == [0, 2, 4] and values.tolist() == [5, 4, 1]
    ids, values = features.row(0)
    assert ids.tolist() == [4, 1] and values.tolist() == [3, 2]
    assert features.row(1)[0].tolist() == []


def test_to_scipy_shares_memory_with_the_features(features: Features) -> None:
    matrix = features.to_scipy()
    np.testing.assert_array_equal(matrix.toarray(), DENSE)
    assert np.shares_memory(matrix.data, features.values)


def test_from_slots_of_to_slots_gives_the_same_features(features: Features) -> None:
    again = from_slots([features[:2].to_slots(), features[2:].to_slots()], 5, (3,))
    np.testing.assert_array_equal(again.to_dense(), DENSE)
    indices, values = features[1:2].to_slots()
    assert indices.shape == values.shape == (1, 1) and not values.any()
    assert features.to_slots()[0].shape == (3, 3)
    assert indices.dtype == np.int64 and values.dtype == np.float32


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 4)])
def test_features_of_no_tokens_support_every_operation(shape: tuple[int, ...]) -> None:
    features = from_slots([], 5, shape)
    assert len(features) == 0 and features.indptr.tolist() == [0]
    assert features.to_dense().shape == (*shape, 5) and features.l0().shape == shape
    assert features.to_slots()[1].shape == (0, 1)
    assert features.indices.dtype == np.int32 and features.values.dtype == np.float32


@pytest.mark.parametrize("tokens", [np.s_[:], np.s_[1:3], np.s_[-1:], np.s_[2:1], np.s_[5:9], np.s_[::-2]])
def test_a_slice_of_features_has_the_tokens_of_the_slice(features: Features, tokens: slice) -> None:
    part = features[tokens]
    np.testing.assert_array_equal(part.to_dense(), DENSE[tokens])
    assert part.shape == (len(DENSE[tokens]),)
    assert tokens.step or not len(part.values) or np.shares_memory(part.values, features.values)


def test_features_refuse_a_number_as_index(features: Features) -> None:
    with pytest.raises(TypeError, match=r"features take a slice of tokens, got 1; use row\(token\) or take\(ids\)"):
        features[1]  # type: ignore[index]


@pytest.mark.parametrize("ids", [[], [2], [2, 0, 0], [[0, 1], [2, 2]]])
def test_take_gives_the_tokens_asked_for(features: Features, ids: list[int]) -> None:
    taken = features.take(ids)
    np.testing.assert_array_equal(taken.to_dense(), DENSE[np.array(ids, int)])
    assert taken.shape == np.shape(ids)


@pytest.mark.parametrize("ids", [[3], [-1, 0]])
def test_take_refuses_tokens_that_do_not_exist(features: Features, ids: list[int]) -> None:
    with pytest.raises(IndexError, match=f"expected tokens 0 to 2, got {min(ids)} to {max(ids)}; count over"):
        features.take(ids)


def test_filter_keeps_matches_and_features(features: Features) -> None:
    np.testing.assert_array_equal(features.filter(features.values > 2).to_dense(), np.where(DENSE > 2, DENSE, 0))
    even = np.arange(5) % 2 == 0
    np.testing.assert_array_equal(features.filter(features=even).to_dense(), DENSE * even)
    both = features.filter(features.values > 2, features=even)
    np.testing.assert_array_equal(both.to_dense(), np.where(DENSE > 2, DENSE, 0) * even)


def test_filter_refuses_a_mask_of_another_size(features: Features) -> None:
    with pytest.raises(ValueError, match=r"expected bool \[5\], one for each match, got bool \[4\]"):
        features.filter(np.ones(4, bool))
    with pytest.raises(ValueError, match=r"expected bool \[5\], one for each feature, got float64 \[5\]"):
        features.filter(features=np.ones(5))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_top_keeps_the_largest_of_each_token_and_of_ties_the_first(n: int) -> None:
    dense = np.random.default_rng(0).integers(0, 4, (40, 12)).astype(np.float32)
    order = np.argsort(-dense, axis=1, kind="stable")
    features = from_slots([(order, np.take_along_axis(dense, order, axis=1))], 12, (40,))
    kept = np.zeros(dense.shape, bool)
    np.put_along_axis(kept, order[:, :n], True, axis=1)
    np.testing.assert_array_equal(features.top(n).to_dense(), dense * kept)


def test_union_keeps_the_values_of_the_first(features: Features) -> None:
    doubled = from_slots([(INDICES, 2 * VALUES)], 5, (3,))
    even = np.arange(5) % 2 == 0
    united = features.filter(features=even).union(doubled)
    np.testing.assert_array_equal(united.to_dense(), np.where(even, DENSE, 2 * DENSE))


def test_replaced_tokens_have_the_rows_given(features: Features) -> None:
    ids = np.array([0, 1])
    found = features.replaced(ids, features.take([2, 0]))
    np.testing.assert_array_equal(found.to_dense(), DENSE[[2, 0, 2]])


def test_spread_features_are_among_tokens_without_features(features: Features) -> None:
    spread = features.spread(np.array([1, 2, 5]), (2, 3))
    assert spread.shape == (2, 3) and spread.l0().tolist() == [[0, 2, 0], [0, 0, 3]]
    assert features.spread(np.arange(3), (3, 1)).shape == (3, 1)


def test_concatenate_is_the_reverse_of_slicing(features: Features) -> None:
    joined = concatenate([features[:1], features[1:1], features[1:]], 5, (3,))
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(features, name))


@pytest.mark.parametrize("token", [10**9, 3, -4])
def test_row_refuses_a_token_that_does_not_exist(features: Features, token: int) -> None:
    with pytest.raises(IndexError, match=f"token {token} does not exist among 3 tokens; count from 0"):
        features.row(token)
    assert features.row(-1)[0].tolist() == features.row(2)[0].tolist()


def test_repr_of_features_is_one_line_of_sizes(features: Features) -> None:
    assert repr(features) == "Features(3 tokens, 5 matches, L0 1.67, d_sae 5)"
    assert repr(features[:0]) == "Features(0 tokens, 0 matches, L0 0.00, d_sae 5)"
