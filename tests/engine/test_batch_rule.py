import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    D_IN,
    QUOTA,
    K,
    joint,
    make_tied_weights,
    make_tied_x,
    make_weights,
    make_x,
    run_graph,
    slots_of,
)
from numpy.typing import NDArray
from recording import RecordingSessions

from sae_runtime import SAE, Features, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.core.slots import Slots
from sae_runtime.engine.batch_encoding import floor_of, limits
from sae_runtime.engine.batch_rule import Encode, cut, encode_joint
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports import witness

BundleOf = Callable[..., Path]
PreActivations = NDArray[np.float32]


@pytest.fixture(params=["mutual", "feature"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def greedy(z: PreActivations, total: int, limit: NDArray[np.int64] | None) -> PreActivations:
    """The matches of z by a walk over all pre-activations: by falling value, then token, then feature."""
    kept, left = np.zeros_like(z), [len(z)] * z.shape[1] if limit is None else limit.tolist()
    order = np.lexsort([*np.indices(z.shape)[::-1].reshape(2, -1), -z.ravel()])
    for token, feature in zip(*np.unravel_index(order, z.shape), strict=True):
        if z[token, feature] > 0 and total > 0 and left[feature] > 0:
            kept[token, feature] = z[token, feature]
            total, left[feature] = total - 1, left[feature] - 1
    return kept


def encoder(z: PreActivations, slots: int, asked: list[int] | None = None) -> Encode:
    """An `Encode` for given z. It gives `slots` slots unless `whole`, and appends the rows it encodes to `asked`."""

    def encode(tiles: Sequence[NDArray[np.int64]], threshold: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
        for ids in tiles:
            assert (np.diff(ids) > 0).all()
            if asked is not None:
                asked.extend(ids.tolist())
            rows = np.where(z[ids] > threshold, z[ids], 0)
            order = np.argsort(-rows, axis=1, kind="stable")[:, : z.shape[1] if whole else slots]
            yield order, np.take_along_axis(rows, order, axis=1)

    return encode


def cases(seed: int) -> Iterator[tuple[PreActivations, int, NDArray[np.int64] | None]]:
    """Pre-activations with and without ties, total matches from none to all, and limits that bind little or much."""
    rng = np.random.default_rng(seed)
    for n, d_sae in ((0, 5), (1, 20), (12, 7), (24, 16)):
        smooth = np.maximum(rng.normal(0, 1, (n, d_sae)), 0)
        tied = np.maximum(rng.integers(-2, 3, (n, d_sae)), 0)
        uneven = smooth * rng.choice([0, 0.1, 1, 30], (n, 1))
        for z in (smooth, tied, uneven, np.ones((n, d_sae))):
            for total in (0, n, 3 * n, n * d_sae + 5):
                few, many = rng.integers(0, 3, d_sae), rng.integers(0, n + 1, d_sae)
                for limit in (None, few, many):
                    yield z.astype(np.float32), total, limit


@pytest.mark.parametrize(("tile", "slots"), [(1, 1), (1, 16), (5, 4), (100, 1), (100, 6)])
def test_encode_joint_equals_the_greedy_walk(tile: int, slots: int) -> None:
    for z, total, limit in cases(seed=tile):
        asked: list[int] = []
        found = encode_joint(encoder(z, slots, asked), *z.shape, total=total, limit=limit, tile=tile, fresh=20)
        assert found.shape == (len(z),)
        np.testing.assert_array_equal(found.to_dense(), greedy(z, total, limit))
        assert (np.bincount(asked, minlength=len(z)) <= 2).all(), "a row was encoded more than twice"


def test_the_bound_of_a_cut_holds_for_later_candidates() -> None:
    """Pre-activations below the bound change nothing, and more candidates only raise the bound."""
    for z, total, limit in cases(seed=1):
        half = z.copy()
        half[len(z) // 2 :] = 0
        _, early = cut(as_features(half), total, limit)
        kept, late = cut(as_features(z), total, limit)
        assert (late >= early).all()
        np.testing.assert_array_equal(kept.to_dense(), greedy(z, total, limit))
        np.testing.assert_array_equal(greedy(np.where(z >= early, z, 0), total, limit), greedy(z, total, limit))


def as_features(z: PreActivations) -> Features:
    counts = (z > 0).sum(axis=1)
    indptr = np.concatenate([[0], counts]).cumsum()
    return Features(indptr, np.nonzero(z)[1].astype(np.int32), z[z > 0], z.shape[1], (len(z),))


def test_only_rows_that_need_it_are_encoded_again() -> None:
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(0, 1, (400, 50)), 0).astype(np.float32)
    z[7] += 2  # all of its 50 pre-activations are among the largest
    asked: list[int] = []
    found = encode_joint(encoder(z, 12, asked), 400, 50, total=400 * 4, limit=None, tile=32)
    again = np.flatnonzero(np.bincount(asked) == 2)
    l0 = found.l0()
    assert l0[7] == 50 and 7 in again
    np.testing.assert_array_equal(again, np.flatnonzero(l0 >= 12))


def test_a_full_column_raises_the_bound_of_later_tiles() -> None:
    """The bound of a full column is its last match, so encode gives only larger values later."""
    z = np.random.default_rng(0).uniform(0.1, 1, (500, 20)).astype(np.float32)
    seen: list[NDArray[np.float32]] = []
    inner = encoder(z, 20)

    def encode(tiles: Sequence[NDArray[np.int64]], threshold: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
        seen.append(threshold)
        return inner(tiles, threshold, whole)

    limit = np.array([0, 1, 20] + [500] * 17)
    encode_joint(encode, 500, 20, total=500, limit=limit, tile=10, fresh=64)
    assert seen[0][0] > 1e38 and not seen[0][1:].any()
    last = seen[-1]
    assert last[1] > last[2] > last[3] > 0.9 and (last[3:] == last[3]).all()
    assert all((after >= before).all() for before, after in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize("limited", [False, True])
def test_memory_follows_the_total_matches(limited: bool) -> None:
    n, d_sae, total = 6_000, 400, 6_000

    def encode(tiles: Sequence[NDArray[np.int64]], threshold: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
        for ids in tiles:
            z = np.abs(np.sin(ids[:, None] * 0.37 + np.arange(d_sae) * 1.7)).astype(np.float32) ** 8
            yield from encoder(z, 8)([np.arange(len(ids))], threshold, whole)

    limit = np.full(d_sae, 25) if limited else None
    tracemalloc.start()
    found = encode_joint(encode, n, d_sae, total=total, limit=limit, tile=32, fresh=1 << 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.values) == total
    assert peak < 60 * total + 60 * n < n * d_sae * 4 / 10


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_tiles_change_no_bit_and_all_witnesses_agree(bundle_of: BundleOf, kind: str, d_sae: int, n: int) -> None:
    x, path = make_x(n), bundle_of(kind, d_sae)
    sae = load(path, threads=1)
    whole = sae.encode_batch(x)
    assert witness.disagreement(joint(kind, d_sae, x), *slots_of(whole)) is None
    indices, values = run_graph(path, "encode_joint.onnx", x=x)
    by_graph = np.zeros((n, d_sae), np.float32)
    row, slot = np.nonzero(values)
    by_graph[row, indices[row, slot]] = values[row, slot]
    np.testing.assert_allclose(whole.to_dense(), by_graph, rtol=1e-5)
    for rows in (1, 3, 64, 1000):
        sae = load(path, threads=1, tiling=Tiling(rows=rows, fresh=100))
        assert_same(sae.encode_batch(x), whole)
        assert_same(sae.encode_batch(lambda ids: x[ids], n), whole)


def assert_same(found: Features, expected: Features) -> None:
    assert found.shape == expected.shape
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("d_sae", [150, 1500])
@pytest.mark.parametrize("k", [0.5, 6.0, 30.0])
def test_ties_go_to_the_first_token_and_feature(bundle_of: BundleOf, kind: str, d_sae: int, k: float) -> None:
    """float32 is exact on whole numbers, and the numpy witness breaks ties in the same order."""
    x, path = make_tied_x(60), bundle_of(kind, d_sae, tied=True)
    z = witness.pre_activations(make_tied_weights(d_sae, kind), x)
    expected = witness.joint(z, k, quota.max_densities(QUOTA, K, d_sae) if kind == "feature" else None)
    for rows in (1, 7, 60):
        sae = load(path, threads=1, tiling=Tiling(rows=rows, fresh=100))
        found = sae.encode_batch(x, k=k)
        np.testing.assert_array_equal(found.to_dense(), np.where(expected.kept, expected.z, 0))


@pytest.mark.parametrize("slots", [1, 24, 150])
def test_any_slots_of_the_bundle_give_the_same(bundle_of: BundleOf, kind: str, slots: int) -> None:
    x = make_x(60)
    x[7] *= 10
    assert_same(load(bundle_of(kind, slots=slots)).encode_batch(x), load(bundle_of(kind)).encode_batch(x))


def test_a_total_beyond_the_positives_takes_them_all(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(7)
    z = witness.pre_activations(make_weights(150, kind), x)
    max_density = np.ones(150) if kind == "feature" else None
    found = load(bundle_of(kind)).encode_batch(x, k=150, max_density=max_density)
    assert witness.disagreement(witness.joint(z, 150, max_density), *slots_of(found)) is None
    assert len(found.values) == (z > 0).sum()


def test_equal_rows_share_the_total_in_their_order(bundle_of: BundleOf, kind: str) -> None:
    """Among equal rows the first ones get the matches."""
    x = np.zeros((9, D_IN), np.float32)
    found = load(bundle_of(kind)).encode_batch(x)
    assert witness.disagreement(joint(kind, 150, x), *slots_of(found)) is None
    silent = load(bundle_of(kind)).encode_batch(x + make_weights(150, kind)["b_dec"])  # z = relu(b_enc)
    assert len(silent.values) <= (make_weights(150, kind)["b_enc"] > 0).sum() * 9


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_max_density_is_an_argument(bundle_of: BundleOf, d_sae: int) -> None:
    rng = np.random.default_rng(3)
    x, sae = make_x(40), load(bundle_of("feature", d_sae), tiling=Tiling(rows=16))
    z = witness.pre_activations(make_weights(d_sae, "feature"), x)
    for max_density in (
        rng.permutation(np.linspace(0, 0.2, d_sae)),
        np.full(d_sae, 0.026),
        np.zeros(d_sae),
        np.ones(d_sae),
    ):
        found = sae.encode_batch(x, max_density=max_density)
        assert witness.disagreement(witness.joint(z, K, max_density), *slots_of(found)) is None
        assert ((found.to_dense() > 0).sum(axis=0) <= np.rint(max_density * 40)).all()
    own = quota.max_densities(QUOTA, K, d_sae)
    assert_same(sae.encode_batch(x, max_density=own), sae.encode_batch(x))


D_INT8 = 512  # features of a bundle that has int8 graphs


def by_int8(path: Path, rows: int | None = None) -> SAE:
    return load(path, threads=1, graph="encode_exact.onnx", tiling=Tiling(rows=rows, fresh=100))


def free_max_densities(kind: str) -> NDArray[np.float64] | None:
    """Limits that hardly bind, so that matches are above the floor."""
    return np.full(D_INT8, 0.5) if kind == "feature" else None


@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("k", [3.0, 6.0, 20.0])
def test_int8_gives_the_same_for_every_tile_size(bundle_of: BundleOf, kind: str, n: int, k: float) -> None:
    path, x = bundle_of(kind, D_INT8, sampled=True), make_x(n)
    z = witness.pre_activations(make_weights(D_INT8, kind), x)
    for max_density in (None, np.full(D_INT8, 0.5)) if kind == "feature" else (None,):
        share = quota.max_densities(QUOTA, K, D_INT8) if kind == "feature" and max_density is None else max_density
        sae = load(path, threads=1, graph="encode_exact.onnx")
        whole = sae.encode_batch(x, k=k, max_density=max_density)
        assert witness.disagreement(witness.joint(z, k, share), *slots_of(whole)) is None
        for rows in (1, 3, 64):
            assert_same(by_int8(path, rows).encode_batch(x, k=k, max_density=max_density), whole)


def test_a_batch_below_the_floor_is_exact_all_the_same(bundle_of: BundleOf, kind: str) -> None:
    """With small activations the first pass, which looks above the floor alone, finds almost no match."""
    path, max_density = bundle_of(kind, D_INT8, sampled=True), free_max_densities(kind)
    sae, read = by_int8(path), bundle.read(path)
    total, limit = limits(read.manifest.batch_allocation, D_INT8, 100, k=K, max_density=max_density)
    floor = floor_of(read, "encode_exact.onnx", total, limit, 100)
    assert floor > 0
    for size in (1.0, 0.5, 0.1, 0.0):
        x = make_x(100) * np.float32(size)
        x[::9] *= 3
        found = sae.encode_batch(x, max_density=max_density)
        z = witness.pre_activations(make_weights(D_INT8, kind), x)
        expected = witness.joint(z, K, max_density)
        assert witness.disagreement(expected, *slots_of(found)) is None
        assert len(found.values) == min(100 * K, (z > 0).sum())
        for rows in (7, 64):
            assert_same(by_int8(path, rows).encode_batch(x, max_density=max_density), found)
    assert z[expected.kept].min(initial=np.inf) < floor, "no batch has a match below the floor"


@pytest.mark.parametrize("graph", ["encode.onnx", "encode_gpu.onnx"])
def test_only_encode_exact_gets_a_floor(bundle_of: BundleOf, kind: str, graph: str) -> None:
    read = bundle.read(bundle_of(kind, D_INT8, sampled=True))
    assert floor_of(read, graph, 600, None, 100) == 0
    threshold = np.unique(make_weights(D_INT8, kind)["threshold"])[0]
    assert floor_of(read, "encode_exact.onnx", 600, None, 100) == pytest.approx(0.85 * threshold)
    assert floor_of(read, "encode_exact.onnx", 600, np.full(D_INT8, 1), 100) == 0, "limits that bind decide"


class Doubting(RecordingSessions):
    """Sessions whose encode_exact.onnx is not certain of some rows, depending on the row and the bound."""

    def altered(self, name: str, feed: dict[str, Any], outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Rows that are not certain have wrong slots."""
        if name != "encode_exact.onnx":
            return outputs
        indices, values, certain = outputs
        doubted = feed["x"][:, 0] > feed["threshold"].max() - 2.0
        indices[doubted], values[doubted] = 0, 99
        return [indices, values, certain & ~doubted]


def test_doubted_rows_are_the_same_for_every_tile_size(bundle_of: BundleOf, kind: str) -> None:
    """The uncertain rows may depend on the bound, but not on the tiles."""
    path, x = bundle_of(kind, D_INT8, sampled=True), make_x(200)

    def doubting(rows: int) -> SAE:
        sessions = Doubting(path)
        return SAE(sessions, "encode_exact.onnx", Tiling(rows=rows, fresh=100))

    saes = {rows: doubting(rows) for rows in (200, 20, 1)}
    for k, max_density in ((6.0, free_max_densities(kind)), (12.0, free_max_densities(kind)), (6.0, None)):
        whole = saes[200].encode_batch(x, k=k, max_density=max_density)
        share = quota.max_densities(QUOTA, K, D_INT8) if kind == "feature" and max_density is None else max_density
        z = witness.pre_activations(make_weights(D_INT8, kind), x)
        assert witness.disagreement(witness.joint(z, k, share), *slots_of(whole)) is None
        for rows in (20, 1):
            assert_same(saes[rows].encode_batch(x, k=k, max_density=max_density), whole)
    redone, tokens = saes[200].redone
    assert 0 < redone <= tokens


@pytest.mark.parametrize("floor", [0.3, 0.8, 5.0])
@pytest.mark.parametrize(("tile", "slots"), [(1, 1), (5, 4), (100, 6)])
def test_a_floor_changes_no_match(floor: float, tile: int, slots: int) -> None:
    for z, total, limit in cases(seed=tile):
        asked: list[int] = []
        encode = encoder(z, slots, asked)
        found = encode_joint(encode, *z.shape, total=total, limit=limit, tile=tile, floor=floor, fresh=20)
        np.testing.assert_array_equal(found.to_dense(), greedy(z, total, limit))
        assert (np.bincount(asked, minlength=len(z)) <= 2).all(), "a row was encoded more than twice"


@pytest.mark.parametrize("off", [1 - 1e-5, 1 + 1e-5])
def test_another_rounding_of_rows_that_are_encoded_again_costs_no_match(off: float) -> None:
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(0, 1, (60, 20)), 0).astype(np.float32)
    inner = encoder(z, 6)

    def encode(tiles: Sequence[NDArray[np.int64]], threshold: NDArray[np.float32], whole: bool) -> Iterator[Slots]:
        other = encoder(z * np.float32(off), 20)
        return other(tiles, threshold, whole) if whole else inner(tiles, threshold, whole)

    for limit in (None, np.full(20, 9)):
        for floor in (0.0, 0.4, 2.0):
            found = encode_joint(encode, 60, 20, total=150, limit=limit, tile=7, floor=floor).to_dense()
            np.testing.assert_allclose(found, greedy(z, 150, limit), rtol=2e-5)


@pytest.mark.parametrize(
    "max_density", [np.ones(4), np.ones((5, 1)), np.full(5, 1.1), np.full(5, -0.1), np.full(5, np.nan)]
)
def test_max_density_that_does_not_fit_is_refused(max_density: NDArray[np.float64]) -> None:
    allocation = Allocation(kind="feature", k=2.0, quota=QUOTA)
    with pytest.raises(ValueError, match=r"max_density must be 5 numbers from 0 to 1, got float64 \["):
        limits(allocation, 5, 10, k=2.0, max_density=max_density)


def test_limits_belong_to_their_allocation() -> None:
    assert limits(Allocation(kind="mutual", k=2.0), 5, 10, k=2.5) == (25, None)
    total, limit = limits(Allocation(kind="feature", k=2.0, quota=QUOTA), 5, 10, k=1.0)
    assert total == 10 and limit is not None
    np.testing.assert_array_equal(limit, quota.tokens_per_feature(quota.max_densities(QUOTA, 2.0, 5), 10))
