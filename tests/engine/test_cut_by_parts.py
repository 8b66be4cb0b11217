"""The cut by parts keeps what the cut in memory keeps, and its memory does not grow with the parts."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate
from sae_runtime.engine import cut_by_parts as module
from sae_runtime.engine.batch_rule import cut
from sae_runtime.engine.cut_by_parts import cut_by_parts

TIED = [0.0, 0.0, 1e-45, 1.0, 1.5, 1.5000001, 2.0, 3.4028235e38]


def as_features(z: NDArray[np.float32]) -> Features:
    indptr = np.concatenate([[0], (z > 0).sum(axis=1)]).cumsum()
    return Features(indptr, np.nonzero(z)[1].astype(np.int32), z[z > 0], z.shape[1], (len(z),))


def check(z: NDArray[np.float32], edges: list[int], total: int, limit: NDArray[np.int64] | None) -> None:
    """Both cuts of z [n, d_sae], in parts of the rows between these edges."""
    edges = [0, *sorted(edges), len(z)]
    parts = [as_features(z[begin:end]) for begin, end in zip(edges, edges[1:], strict=False)]
    expected, bound = cut(as_features(z), total, limit)
    kept = cut_by_parts(lambda: parts, z.shape[1], total=total, limit=limit)
    found = concatenate(
        [kept.matches(begin, part) for begin, part in zip(edges, parts, strict=False)], z.shape[1], (len(z),)
    )
    np.testing.assert_array_equal(kept.bound, bound)
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@st.composite
def problems(draw: st.DrawFn) -> Any:
    n, d_sae = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = rng.choice(np.array(TIED, np.float32), (n, d_sae))
    if draw(st.booleans()):
        z = np.maximum(rng.normal(0, 1, (n, d_sae)), 0).astype(np.float32)
    edges = draw(st.lists(st.integers(0, n), max_size=5))
    limit = draw(st.none() | st.lists(st.integers(0, n + 2), min_size=d_sae, max_size=d_sae).map(np.array))
    return z, edges, draw(st.integers(0, n * d_sae + 3)), limit


@given(problems())
@settings(max_examples=25, deadline=None)
def test_it_keeps_what_the_cut_in_memory_keeps(problem: Any) -> None:
    check(*problem)


@pytest.mark.parametrize("counts", [64, 700])
def test_the_bits_of_a_pass_change_nothing(counts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 counts a column has 2 bits a pass; with 700 it has 5, which do not divide 32."""
    monkeypatch.setattr(module, "_COUNTS", counts)
    rng = np.random.default_rng(counts)
    smooth = np.maximum(rng.normal(0, 1, (60, 11)), 0).astype(np.float32)
    tied = rng.integers(0, 4, (60, 11)).astype(np.float32)
    for z, total in ((smooth, 200), (tied, 200), (tied, 10_000)):
        for limit in (None, rng.integers(0, 20, 11), np.full(11, 60)):
            check(z, [7, 7, 30], total, limit)


def test_no_parts_keep_nothing() -> None:
    for limit in (None, np.zeros(3, int)):
        kept = cut_by_parts(lambda: [], 3, total=0, limit=limit)
        assert len(kept.matches(0, as_features(np.ones((2, 3), np.float32))).values) == 0


def peak(parts: int) -> int:
    """The most memory that a cut of so many parts takes."""

    def made() -> Iterator[Features]:
        for number in range(parts):
            z = np.abs(np.sin(np.arange(2_000).reshape(100, 20) * 0.37 + number)).astype(np.float32)
            yield as_features(z)

    tracemalloc.start()
    cut_by_parts(made, 20, total=parts * 500, limit=np.full(20, 60 * parts))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COUNTS", 1 << 10)
    assert peak(24) < 1.2 * peak(3)
