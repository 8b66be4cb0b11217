import re

import numpy as np
import pytest
from documents import table

from sae_runtime.core.edits import Edit, as_inputs

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
    rows = table("steering.md", "to")
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


@pytest.mark.parametrize("feature", [1.5, 1.0, "1", None])
def test_an_edit_refuses_a_feature_that_is_not_a_whole_number(feature: object) -> None:
    with pytest.raises(ValueError, match=f"a feature is a whole number, got {feature!r}"):
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
