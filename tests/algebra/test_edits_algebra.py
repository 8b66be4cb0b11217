"""Edits against one line of numpy: f' = clip(factor f + shift, low, high), where the edit is not confined."""

import math
import re
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_runtime import Edit
from sae_runtime.core.edits import as_inputs, edit_arrays, resolved, without_gate

D_SAE = 8
LARGEST = float(np.finfo(np.float32).max)
NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.5, -LARGEST, LARGEST]), st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)
ACTIVATIONS = np.array([0.0, 1e-6, 0.5, 1.0, 2.5, 40.0, 1e6])


def made(feature: int, verb: str, number: float, only: bool) -> Edit:
    if verb == "ablate":
        return Edit.ablate(feature, only_active=only)
    edit: Edit = getattr(Edit, verb)(feature, number, only_active=only)
    return edit


def plain(feature: int, *numbers: Any) -> Edit:
    return Edit(feature, *numbers)


FEATURES = st.integers(0, D_SAE - 1)
EDITS = st.one_of(
    st.builds(plain, FEATURES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans()),
    st.builds(made, FEATURES, st.sampled_from(["set", "add", "scale", "ablate", "cap"]), NUMBERS, st.booleans()),
)
LISTS = st.lists(EDITS, max_size=4, unique_by=lambda edit: edit.feature)


def edited(edit: Edit, f: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an edit in plain numbers makes of activations."""
    new = np.minimum(np.maximum(edit.factor * f + edit.shift, edit.low), edit.high)
    return np.where((f > 0) | (not edit.only_active), new, f)


def of_graph(arrays: dict[str, NDArray[Any]], request: int, slot: int, f: NDArray[np.float64]) -> NDArray[np.float64]:
    scale, shift, low, high = (float(arrays[name][request, slot]) for name in ("scale", "shift", "low", "high"))
    return np.minimum(np.maximum(scale * f + shift, low), high)


@given(EDITS)
@examples(8)
def test_an_edit_without_a_gate_does_the_same(edit: Edit) -> None:
    """Where there is one, and then in a graph, whose numbers are float32."""
    free = without_gate(edit)
    if free is None:
        assert edit.only_active and edited(edit, np.zeros(1))[0] == 0
        with pytest.raises(ValueError, match="sae_when"):
            as_inputs([[edit]], D_SAE)
        return
    assert not free.only_active
    found = of_graph(as_inputs([[edit]], D_SAE), 0, 0, ACTIVATIONS)
    expected = edited(edit, ACTIVATIONS)
    np.testing.assert_allclose(edited(free, ACTIVATIONS), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@given(st.lists(LISTS, max_size=3))
@examples(8)
def test_arrays_have_the_edits_of_each_request(requests: list[list[Edit]]) -> None:
    arrays = edit_arrays(requests, D_SAE)
    longest = max(map(len, requests), default=0)
    assert {array.shape for array in arrays.values()} == {(len(requests), longest)}
    for b, request in enumerate(requests):
        for e in range(longest):
            edit = request[e] if e < len(request) else Edit(0)
            assert arrays["features"][b, e] == edit.feature and arrays["only_active"][b, e] == edit.only_active
            confined = np.where((ACTIVATIONS > 0) | (not edit.only_active), of_graph(arrays, b, e, ACTIVATIONS), 0)
            np.testing.assert_allclose(confined, edited(edit, ACTIVATIONS), rtol=1e-6, atol=0)


@given(LISTS.filter(bool), st.data())
@examples(8)
def test_a_feature_out_of_range_or_twice_is_refused(edits: list[Edit], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(edits))
    with pytest.raises(ValueError, match="edited twice in one request"):
        edit_arrays([edits, [*edits, again]], D_SAE)
    feature = data.draw(st.integers().filter(lambda n: not 0 <= n < D_SAE))
    with pytest.raises(ValueError, match="does not exist, expected 0 to 7"):
        edit_arrays([[*edits, Edit(feature)]], D_SAE)


@given(st.sampled_from(["set", "add", "cap"]), FEATURES, st.floats(-1e20, 1e20), st.floats(2.0**-10, 2.0**60, width=32))
@examples(8)
def test_multiples_are_numbers_times_the_largest(verb: str, feature: int, times: float, unit: float) -> None:
    largest = np.zeros(D_SAE, np.float32)
    largest[feature] = unit
    asked = getattr(Edit, verb)(feature, times=times)
    number = times * float(largest[feature])
    if abs(number) > LARGEST:
        with pytest.raises(ValueError, match="needs finite float32 numbers"):
            resolved([asked], largest)
        return
    assert resolved([asked], largest) == [getattr(Edit, verb)(feature, number)]
    assert resolved(resolved([asked], largest), None) == resolved([asked], largest)
    with pytest.raises(ValueError, match="is not known" if feature % 2 else "active on none"):
        resolved([asked], None if feature % 2 else np.zeros(D_SAE, np.float32))


@given(st.sampled_from(["factor", "shift", "low", "high"]), st.floats())
@examples(8)
def test_only_finite_float32_numbers_make_an_edit(name: str, number: float) -> None:
    given_number: dict[str, Any] = {name: number}
    if math.isfinite(number) and abs(number) <= LARGEST:
        assert getattr(Edit(3, **given_number), name) == number
        return
    with pytest.raises(ValueError, match=re.escape(f"edit of feature 3 needs finite float32 numbers, got {number}")):
        Edit(3, **given_number)


UNCUT = st.builds(plain, st.just(3), *(st.floats(-1e6, 1e6, width=32, allow_subnormal=False),) * 2)


@given(st.tuples(UNCUT, UNCUT))
@examples(8)
def test_scales_and_additions_compose(free: tuple[Edit, Edit]) -> None:
    """Two edits of every token, one after the other, are one edit where neither is cut."""
    factor, shift = free[0].factor * free[1].factor, free[1].factor * free[0].shift + free[1].shift
    both = edited(free[1], edited(free[0], ACTIVATIONS))
    size = np.abs(factor * ACTIVATIONS) + np.abs(free[1].factor * free[0].shift) + np.abs(free[1].shift)
    assert (np.abs(both - edited(Edit(3, factor, shift), ACTIVATIONS)) <= 1e-12 * size).all()
