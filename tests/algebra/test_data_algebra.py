"""Splits, quotas, windows and the batch rule against what they must hold for any data."""

from typing import Any

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_runtime.activations.documents import Document, Source
from sae_runtime.activations.parts import IN_GAP, divide, divide_at
from sae_runtime.activations.windows import Window, batches, first_rows, groups, origin, padded, windows
from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota
from sae_runtime.core.features import from_slots
from sae_runtime.core.slots import Slots
from sae_runtime.engine.batch_rule import encode_joint

QUOTAS = st.builds(
    lambda exponent, offset, slack: Quota(exponent=exponent, offset=offset, slack=slack),
    st.floats(0, 3),
    st.floats(0, 100),
    st.floats(0.1, 50),
)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25), st.floats(0.05, 0.4), st.integers(0, 6), st.integers(0, 9)
)
@examples(8)
def test_parts_have_what_was_asked_and_share_no_window(sizes: list[int], share: float, gap: int, seed: int) -> None:
    documents = np.repeat(np.arange(len(sizes)), sizes)
    units, wanted = len(documents), [share * len(documents), 0.5 * share * len(documents)]
    parts = divide(documents, np.ones(units), wanted, gap=gap, rng=np.random.default_rng(seed))
    if parts is None:
        return
    counts = np.bincount(parts + 1, minlength=4)[1:]
    for rows, asked in zip(counts, [units - sum(wanted), *wanted], strict=True):
        assert 0 < rows and abs(rows - asked) <= max(0.1 * asked, 1)
    assert set(parts.tolist()) <= {IN_GAP, 0, 1, 2}
    for near in range(1, gap + 1):  # rows of one document in different parts are further apart than the gap
        one, other = parts[:-near], parts[near:]
        same = documents[:-near] == documents[near:]
        assert not (same & (one >= 0) & (other >= 0) & (one != other)).any()
    found = divide_at(documents, units, share, gap=gap)
    if found is not None:
        first, last = found
        assert not set(first) & set(last) and len(first) + len(last) <= units and last.min() > first.max()
        assert abs(len(last) - share * units) <= max(0.1 * share * units, 1)


@given(QUOTAS, st.integers(1, 60), st.floats(0.001, 1), st.integers(0, 500), st.floats(0, 1, exclude_max=True))
@examples(8)
def test_quotas_sum_to_k_and_limits_hold(law: Quota, d_sae: int, share: float, tokens: int, u: float) -> None:
    k = share * d_sae
    density = quota.quotas(law, k, d_sae)
    assert (density >= 0).all() and (density <= 1).all() and (np.diff(density) <= 1e-12).all()
    np.testing.assert_allclose(density.sum(), k, rtol=1e-9)
    free = density < 1  # in proportion to the law
    law_of = (np.arange(1, d_sae + 1) + law.offset) ** -law.exponent
    np.testing.assert_allclose(np.ptp((density / law_of)[free]) if free.any() else 0, 0, atol=1e-9 * k / law_of.min())
    most = quota.max_densities(law, k, d_sae)
    np.testing.assert_array_equal(most, np.minimum(1, law.slack * density))
    limit, sampled = quota.tokens_per_feature(most, tokens), quota.sampled_tokens_per_feature(most, tokens, u)
    assert (np.abs(limit - most * tokens) <= 0.5).all() and (np.abs(sampled - most * tokens) < 1 + 1e-6).all()
    assert (
        abs(sampled.sum() - (most * tokens).sum()) < 1 + 1e-6 and (limit <= tokens).all() and (sampled <= tokens).all()
    )


class Letters:
    """A tokenizer of letters, with a token before and after each text."""

    bos_token_id, eos_token_id, cls_token_id, sep_token_id, mask_token_id = 1, 2, None, None, None
    unk_token_id, pad_token_id, all_special_ids = 3, 0, [0, 1, 2, 3]

    def __init__(self, before: int, after: int) -> None:
        self.before, self.after = [1] * before, [2] * after

    def __call__(self, texts: Any, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = [[ord(letter) for letter in text] for text in ([texts] if isinstance(texts, str) else texts)]
        if add_special_tokens:
            ids = [[*self.before, *one, *self.after] for one in ids]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}


@given(
    st.lists(st.text("abcdefg", max_size=12), max_size=6),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 6)),
    st.booleans(),
    st.data(),
)
@examples(8)
def test_windows_cover_each_text_once(texts: list[str], sizes: tuple[int, int, int], special: bool, data: Any) -> None:
    before, after, room = sizes
    documents = [Document(text, Source("texts", row)) for row, text in enumerate(texts)]
    made = list(windows(Letters(before, after), documents, context=before + after + room, special=special))
    for number, text in enumerate(texts):
        own = [window for window in made if window.document == number]
        inner = slice(before, -after or None)
        assert "".join(chr(i) for window in own for i in window.ids[inner]) == text
        assert [p for window in own for p in window.positions[inner]] == list(range(len(text)))
        assert all(len(window.ids) <= before + after + room for window in own)
        assert all(window.kept.all() if special else window.rows == len(window.ids[inner]) for window in own)
        assert all(0 <= window.positions.min() <= window.positions.max() < len(text) for window in own)
    total = sum(window.rows for window in made)
    rows = data.draw(st.one_of(st.none(), st.integers(0, total + 2)))
    first = list(first_rows(made, rows))
    assert sum(window.rows for window in first) == (total if rows is None else min(rows, total))
    most = data.draw(st.integers(1, 20))
    grouped = list(groups(made, most))
    assert [id(window) for group in grouped for window in group] == [id(window) for window in made]
    assert all(len(group) == 1 or sum(window.rows for window in group) <= most for group in grouped)
    for group in grouped:
        check_batches(group, most)


def check_batches(group: list[Window], most: int) -> None:
    """Every window is in one batch, and a batch gives back its tokens."""
    found = list(batches(group, most))
    assert sorted(number for batch in found for number in batch) == list(range(len(group)))
    for batch in found:
        ids, real, kept = padded([group[number] for number in batch], pad=0, multiple=2)
        assert len(batch) == 1 or len(batch) * max(len(group[number].ids) for number in batch) <= most
        assert ids.shape[1] % 2 == 0 and (ids[~real] == 0).all() and not (kept & ~real).any()
        for row, number in enumerate(batch):
            np.testing.assert_array_equal(ids[row][real[row]], group[number].ids)
            np.testing.assert_array_equal(kept[row][real[row]], group[number].kept)
    assert len(origin(group)["tokens"]) == sum(window.rows for window in group)


def matches(z: NDArray[np.float32], total: int, limit: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """The batch rule on all pre-activations."""
    order = np.argsort(-z, axis=None, kind="stable")
    used, kept, left = np.zeros(z.shape[1], int), np.zeros_like(z), total
    for place in order:
        row, feature = divmod(int(place), z.shape[1])
        if z[row, feature] > 0 and left and (limit is None or used[feature] < limit[feature]):
            kept[row, feature], left = z[row, feature], left - 1
            used[feature] += 1
    return kept


@given(st.integers(0, 9), st.integers(1, 6), st.integers(1, 4), st.integers(0, 30), st.booleans(), st.data())
@examples(8)
def test_the_batch_rule_in_tiles_is_the_rule_on_all(
    tokens: int, d_sae: int, tile: int, total: int, limited: bool, data: st.DataObject
) -> None:
    """Whole numbers, so that there are ties; with any floor, any number of slots and any moment of cutting."""
    numbers = data.draw(st.lists(st.integers(0, 5), min_size=tokens * d_sae, max_size=tokens * d_sae))
    z = np.array(numbers, np.float32).reshape(tokens, d_sae)
    limit = np.array(data.draw(st.lists(st.integers(0, 4), min_size=d_sae, max_size=d_sae))) if limited else None
    few, floor = data.draw(st.integers(1, d_sae)), data.draw(st.sampled_from([0.0, 0.5, 3.5]))

    def encode(tiles: Any, bound: NDArray[np.float32], whole: bool) -> Any:
        for ids in tiles:
            rows = np.where(z[ids] > bound, z[ids], 0)
            indices = np.argsort(-rows, axis=1, kind="stable")[:, : d_sae if whole else few]
            slots: Slots = indices, np.take_along_axis(rows, indices, axis=1)
            yield slots

    fresh = data.draw(st.sampled_from([1, 4, 1000]))
    found = encode_joint(encode, tokens, d_sae, total=total, limit=limit, tile=tile, floor=floor, fresh=fresh)
    np.testing.assert_array_equal(found.to_dense(), matches(z, total, limit))
    assert len(from_slots([found.to_slots()], d_sae, (tokens,)).values) <= total
