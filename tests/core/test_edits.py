import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from documents import table

from sae_runtime.core.edits import Edit, as_inputs, edit_arrays, resolved, without_gate

LARGEST = float(np.finfo(np.float32).max)


def edited(edit: Edit, f: float) -> float:
    """The formula f' = clip(factor * f + shift, low, high)."""
    return float(np.clip(edit.factor * f + edit.shift, edit.low, edit.high))


@pytest.mark.parametrize(
    ("edit", "off", "on"),
    [
        (Edit.set(3, 8.0), 8.0, 8.0),
        (Edit.set(3, -1.0), -1.0, -1.0),
        (Edit.add(3, 1.5), 1.5, 4.0),
        (Edit.scale(3, 2.0), 0.0, 5.0),
        (Edit.scale(3, 0.5), 0.0, 1.25),
        (Edit.ablate(3), 0.0, 0.0),
        (Edit.cap(3, 2.0), 0.0, 2.0),
        (Edit.cap(3, 3.0), 0.0, 2.5),
        (Edit(3), 0.0, 2.5),
        (Edit(3, factor=2.0, shift=1.0, low=2.0, high=5.5), 2.0, 5.5),
    ],
)
def test_each_kind_of_edit_changes_an_inactive_and_an_active_feature_by_its_formula(
    edit: Edit, off: float, on: float
) -> None:
    assert edit.feature == 3
    assert (edited(edit, 0.0), edited(edit, 2.5)) == (off, on)


def test_each_kind_of_edit_follows_the_table_of_the_document() -> None:
    rows = table("guides/steering.md", "to")
    assert len(rows) == 5
    for _, call, numbers in rows:
        verb, *arguments = re.findall(r"`Edit\.(\w+)\((\d+)(?:, ([\d.]+))?\)`", call)[0]
        edit = getattr(Edit, verb)(int(arguments[0]), *(float(number) for number in arguments[1:] if number))
        scale, shift, *high = re.findall(r"[\d.]+", numbers)
        assert (edit.factor, edit.shift, edit.low) == (float(scale), float(shift), -LARGEST)
        assert edit.high == (float(high[0]) if high else LARGEST)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 3.5e38])
def test_an_edit_refuses_numbers_that_are_not_finite_float32(number: float) -> None:
    for make in (Edit.set, Edit.add, Edit.scale, Edit.cap):
        with pytest.raises(ValueError, match=re.escape(f"feature 7 needs finite float32 numbers, got {number}")):
            make(7, number)
    with pytest.raises(ValueError, match="feature 7 needs finite"):
        Edit(7, low=number)


@pytest.mark.parametrize("number", ["2", None, 1j, True, [1.0, 2.0], 10**400])
def test_an_edit_refuses_what_is_no_number(number: Any) -> None:
    with pytest.raises(ValueError, match="of an edit of feature 7 must be|feature 7 needs finite float32 numbers"):
        Edit.scale(7, number)
    with pytest.raises(ValueError, match="only_active of an edit of feature 7 is True or False, got 'no'"):
        Edit.ablate(7, only_active="no")  # type: ignore[arg-type]


def test_a_number_of_a_short_type_is_multiplied_without_rounding() -> None:
    (edit,) = resolved([Edit.set(1, times=np.float16(1.5))], np.array([0, 1000.123], np.float32))  # type: ignore[arg-type]
    assert edit.shift == 1.5 * float(np.float32(1000.123))


@pytest.mark.parametrize("feature", [1.5, 1.0, b"1", None, True])
def test_an_edit_refuses_a_feature_that_is_not_a_whole_number(feature: object) -> None:
    with pytest.raises(ValueError, match=f"a feature is a whole number or a label, got {feature!r}"):
        Edit(feature)  # type: ignore[arg-type]
    assert Edit(np.int64(3)).feature == 3  # type: ignore[arg-type]


def test_as_inputs_pads_short_requests_with_edits_that_change_nothing() -> None:
    inputs = as_inputs([[Edit.set(4, 8.0), Edit.cap(0, 2.0)], [], [Edit.add(5, -1.0)]], 6)
    assert {name: array.dtype.name for name, array in inputs.items()} == {
        "features": "int64",
        "scale": "float32",
        "shift": "float32",
        "low": "float32",
        "high": "float32",
    }
    assert inputs["features"].tolist() == [[4, 0], [0, 0], [5, 0]]
    assert inputs["scale"].tolist() == [[0, 1], [1, 1], [1, 1]]
    assert inputs["shift"].tolist() == [[8, 0], [0, 0], [-1, 0]]
    assert inputs["low"].tolist() == [[-LARGEST] * 2] * 3
    assert inputs["high"].tolist() == [[LARGEST, 2], [LARGEST] * 2, [LARGEST] * 2]


@pytest.mark.parametrize("requests", [[], [[]], [[], []]])
def test_as_inputs_of_no_edits_is_empty(requests: list[list[Edit]]) -> None:
    assert {array.shape for array in as_inputs(requests, 6).values()} == {(len(requests), 0)}


@pytest.mark.parametrize("feature", [-1, 6, 2**70])
def test_as_inputs_refuses_a_feature_out_of_range(feature: int) -> None:
    with pytest.raises(ValueError, match=f"feature {feature} does not exist, expected 0 to 5"):
        as_inputs([[Edit.ablate(0)], [Edit.ablate(feature)]], 6)


def test_as_inputs_refuses_two_edits_of_a_feature_in_one_request() -> None:
    with pytest.raises(ValueError, match="feature 2 is edited twice in one request; give one edit for it"):
        as_inputs([[Edit.ablate(2), Edit.add(2, 1.0)]], 6)
    assert as_inputs([[Edit.ablate(2)], [Edit.add(2, 1.0)]], 6)["features"].tolist() == [[2], [2]]


@pytest.mark.parametrize("make", [Edit.set, Edit.add, Edit.cap])
def test_an_edit_takes_a_number_or_a_multiple(make: Callable[..., Edit]) -> None:
    for arguments in ({}, {"times": 2.0}):
        number = (1.0,) if arguments else ()
        with pytest.raises(ValueError, match="an edit of feature 7 needs a number or times=, one of them"):
            make(7, *number, **arguments)
    with pytest.raises(ValueError, match="feature 7 needs finite"):
        make(7, times=float("inf"))


def test_multiples_become_numbers_and_bounds_that_bind_nothing_stay() -> None:
    largest = np.array([0, 0.25, 3], np.float32)
    edits = [Edit.set(2, times=2), Edit.cap(1, times=4), Edit.add(2, times=-0.5, only_active=True), Edit.set(0, 9.0)]
    assert resolved(edits, largest) == [
        Edit.set(2, 6.0),
        Edit.cap(1, 1.0),
        Edit.add(2, -1.5, only_active=True),
        edits[3],
    ]
    assert resolved([Edit.set(2, 1.0)], None) == [Edit.set(2, 1.0)]
    with pytest.raises(ValueError, match="feature 2 needs finite float32 numbers"):
        resolved([Edit.set(2, times=3e38)], largest)
    assert as_inputs([[Edit.set(2, times=2)]], 3, largest)["shift"].tolist() == [[6]]


def test_only_active_arrays_say_which_edits() -> None:
    arrays = edit_arrays([[Edit.add(2, 1.0, only_active=True), Edit.add(1, 1.0)], []], 3)
    assert arrays["only_active"].tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("factor", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("shift", [0.0, 1.5, -1.5, 1e10, 1e30])
@pytest.mark.parametrize(
    ("low", "high"), [(-LARGEST, LARGEST), (1.0, LARGEST), (-LARGEST, -1.0), (-1.0, 1.0), (2.0, 1.0)]
)
def test_an_edit_without_a_gate_equals_one_only_where_the_feature_is_active(
    factor: float, shift: float, low: float, high: float
) -> None:
    edit = Edit(3, factor, shift, low, high, only_active=True)
    plain = without_gate(edit)
    assert without_gate(Edit(3, factor, shift, low, high)) == Edit(3, factor, shift, low, high)
    f = np.array([0, 1e-20, 1e-6, 0.3, 2.5, 4e4], np.float32)
    numbers = (np.float32(number) for number in (factor, shift, low, high))
    factor32, shift32, low32, high32 = numbers
    expected = np.where(f > 0, np.minimum(np.maximum(factor32 * f + shift32, low32), high32), 0)
    if plain is None:
        constant = len(set(expected[1:].tolist())) == 1
        assert not constant or factor < 0 or shift > 1e10, "such an edit needs no gate"
        return
    assert not plain.only_active
    with np.errstate(over="raise", invalid="raise"):
        steep = np.float32(plain.factor) * f + np.float32(plain.shift)
        found = np.minimum(np.maximum(steep, np.float32(plain.low)), np.float32(plain.high))
    np.testing.assert_array_equal(found, expected)
