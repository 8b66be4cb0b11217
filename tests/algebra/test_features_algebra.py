"""Features against dense arrays: every operation on sparse rows is one on a matrix."""

from typing import Any

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from sae_runtime import Features
from sae_runtime.core.features import concatenate, from_slots
from sae_runtime.core.slots import joined_slots

Dense = NDArray[np.float32]
# Few values, so that there are ties, zeros and full rows.
VALUES = st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 0.5, 3.0e38, 1e-45])
SHAPES = st.sampled_from([(0,), (1,), (5,), (2, 3), (3, 0), (), (2, 1, 2)])


@st.composite
def matrices(draw: st.DrawFn, shape: tuple[int, ...] | None = None, d_sae: int | None = None) -> Dense:
    """Dense activations [*shape, d_sae]."""
    shape = draw(SHAPES) if shape is None else shape
    return draw(hnp.arrays(np.float32, (*shape, d_sae or draw(st.integers(1, 6))), elements=VALUES))


def sparse(dense: Dense) -> Features:
    flat = dense.reshape(-1, dense.shape[-1])
    indptr = np.concatenate([[0], (flat > 0).sum(axis=1).cumsum()])
    return Features(indptr, np.nonzero(flat)[1].astype(np.int32), flat[flat > 0], dense.shape[-1], dense.shape[:-1])


def assert_is(features: Features, dense: Dense) -> None:
    features.check()
    assert features.shape == dense.shape[:-1] and features.d_sae == dense.shape[-1]
    np.testing.assert_array_equal(features.to_dense(), dense)
    assert (features.values > 0).all() and features.indptr.dtype == np.int64 and features.indices.dtype == np.int32
    np.testing.assert_array_equal(features.l0(), (dense > 0).sum(axis=-1))


@given(matrices(), st.data())
@examples(8)
def test_slices_and_takes(dense: Dense, data: st.DataObject) -> None:
    features, flat = sparse(dense), dense.reshape(-1, dense.shape[-1])
    assert_is(features, dense)
    tokens = data.draw(st.slices(len(flat)))
    assert_is(features[tokens], flat[tokens])
    if len(flat):
        ids = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=8))
        assert_is(features.take(ids), flat[np.array(ids, int)])
        row = data.draw(st.integers(-len(flat), len(flat) - 1))
        order = np.argsort(-flat[row], kind="stable")
        order = order[flat[row][order] > 0]
        np.testing.assert_array_equal(features.row(row)[0], order)
        np.testing.assert_array_equal(features.row(row)[1], flat[row][order])


@given(matrices(), st.data())
@examples(8)
def test_filters_and_tops(dense: Dense, data: st.DataObject) -> None:
    features, flat = sparse(dense), dense.reshape(-1, dense.shape[-1])
    n = data.draw(st.integers(0, 7))
    rank = np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1, kind="stable").reshape(dense.shape)
    assert_is(features.top(n), np.where(rank < n, dense, 0))
    of_match = data.draw(hnp.arrays(bool, len(features.values)))
    of_feature = data.draw(hnp.arrays(bool, features.d_sae))
    kept = dense.copy()
    kept[dense > 0] *= of_match
    assert_is(features.filter(of_match), kept)
    assert_is(features.filter(of_match, features=of_feature), kept * of_feature)


@given(matrices(), st.data())
@examples(8)
def test_unions_replacements_and_spreads(dense: Dense, data: st.DataObject) -> None:
    features, flat = sparse(dense), dense.reshape(-1, dense.shape[-1])
    other = data.draw(matrices(dense.shape[:-1], dense.shape[-1]))
    assert_is(features.union(sparse(other)), np.where(dense > 0, dense, other))
    chosen = data.draw(hnp.arrays(bool, len(flat)))
    new = data.draw(matrices((int(chosen.sum()),), dense.shape[-1]))
    replaced = flat.copy()
    replaced[chosen] = new
    assert_is(features.replaced(np.flatnonzero(chosen), sparse(new)), replaced.reshape(dense.shape))
    spread = np.zeros_like(flat)
    spread[chosen] = new
    assert_is(sparse(new).spread(np.flatnonzero(chosen), (len(flat),)), spread)


@given(matrices((6,)), st.lists(st.integers(0, 6), max_size=4), st.data())
@examples(8)
def test_slots_in_parts_are_the_whole(dense: Dense, cuts: list[int], data: st.DataObject) -> None:
    """Rows by falling value with any number of unused slots, in parts of any sizes."""
    d_sae, parts = dense.shape[1], []
    bounds = [0, *sorted(cuts), 6]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        rows = dense[begin:end]
        slots = data.draw(st.integers(max(int((rows > 0).sum(axis=1).max(initial=0)), 1), d_sae + 2))
        indices = np.argsort(-rows, axis=1, kind="stable")[:, :slots]
        grow = ((0, 0), (0, slots - indices.shape[1]))
        values = np.pad(np.take_along_axis(rows, indices, axis=1), grow)
        parts.append((np.pad(indices, grow), values))
    whole = from_slots(parts, d_sae, (6,))
    assert_is(whole, dense)
    assert_is(concatenate([from_slots([part], d_sae, (len(part[0]),)) for part in parts], d_sae, (6,)), dense)
    joined = joined_slots(parts)
    assert joined[1].shape == (6, max(int((dense > 0).sum(axis=1).max()), 1))
    assert (joined[0][joined[1] == 0] == 0).all() and (np.diff(joined[1], axis=1) <= 0).all()
    again: Any = whole.to_slots()
    for slots_of in (joined, again):
        assert_is(from_slots([slots_of], d_sae, (6,)), dense)
