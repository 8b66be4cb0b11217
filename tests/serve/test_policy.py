"""Bounds for edits: every edit that could give more than the bound is refused, whatever form it has."""

import math
from typing import Any

import numpy as np
import pytest

from sae_runtime.core.edits import Edit
from sae_runtime.serve.edit_bounds import Guard
from sae_runtime.serve.edit_kinds import kind_of
from sae_runtime.serve.policy import KINDS, Policy

LARGEST = np.array([0, 1, 2, 4, 8, 16, 32, 64], np.float32)
LABELS = {1: "a loop", 2: "a loop", 3: "sae: name", 4: "other"}
BIG = float(np.finfo(np.float32).max)


def guard(**bounds: Any) -> Guard:
    return Guard(
        Policy(**bounds),
        8,
        names=("mine", "sae"),
        elsewhere=("theirs",),
        largest=lambda: LARGEST,
        labels=lambda: LABELS,
    )


def refused(one: Guard, *edits: Edit) -> bool:
    try:
        one.check(edits)
    except ValueError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_no_bounds_allow_all() -> None:
    assert not Policy().bounded
    assert not refused(guard(), Edit.set(3, 1e30), Edit.scale(4, -1e30))


@pytest.mark.parametrize("make", [Edit.set, Edit.add])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("only_active", [False, True])
def test_strength(make: Any, sign: int, only_active: bool) -> None:
    one = guard(largest_edit=5.0)
    assert not refused(one, make(3, sign * 5.0, only_active=only_active))
    assert refused(one, make(3, sign * 5.001, only_active=only_active))
    two = guard(largest_multiple=2.0)
    assert not refused(two, make(3, sign * 8.0, only_active=only_active))
    assert refused(two, make(3, sign * 8.001, only_active=only_active))
    assert refused(two, make(0, sign * 0.001, only_active=only_active)), "its largest activation is 0"


def test_a_multiple_at_the_bound_passes_after_rounding() -> None:
    rng = np.random.default_rng(0)
    largest = rng.uniform(0.01, 50, 500).astype(np.float32)
    for times in (0.1, 1 / 3, 2.0, 3.7):
        one = Guard(Policy(largest_multiple=times), 500, largest=lambda: largest)
        for feature in range(500):
            one.check([Edit.set(feature, float(np.float32(times * float(largest[feature]))))])


def test_factors_and_caps() -> None:
    assert refused(guard(largest_factor=2.0), Edit.scale(3, 2.5))
    assert refused(guard(largest_factor=2.0), Edit.scale(3, -2.5))
    assert not refused(guard(largest_factor=2.0), Edit.scale(3, -2.0), Edit.set(4, 1e9), Edit.cap(5, 1e9))
    assert refused(guard(largest_multiple=2.0), Edit.scale(3, 2.5)), "a multiple bounds the factor too"
    assert refused(guard(largest_edit=2.0), Edit.cap(3, -2.5)), "a cap below 0 sets the feature"
    assert not refused(guard(largest_edit=0.0), Edit.ablate(3), Edit.scale(4, 1e6), Edit.cap(5, 0.5))


def test_no_edit_that_passes_gives_more_than_the_bound() -> None:
    """Edits of all forms; the witness computes f' for activations up to the largest one."""
    rng = np.random.default_rng(1)
    one = guard(largest_multiple=2.0)
    numbers = np.array([0, 1, -1, 0.5, 3, -7, 20, 1e6, -1e6, BIG, -BIG], np.float32)
    passed = 0
    for _ in range(5000):
        feature = int(rng.integers(1, 8))
        scale, shift, low, high = (float(n) for n in rng.choice(numbers, 4))
        if refused(one, Edit(feature, scale, shift, low, high)) or (scale, shift, low, high) == (1.0, 0.0, -BIG, BIG):
            continue
        passed += 1
        f = np.linspace(0, float(LARGEST[feature]), 50)
        edited = np.minimum(np.maximum(scale * f + shift, low), high)
        assert (np.abs(edited) <= (2 * float(LARGEST[feature]) + 2 * f) * 1.00001).all(), (scale, shift, low, high)
    assert passed > 100


def test_an_edit_that_changes_nothing_is_none() -> None:
    for bounds in ({"edits": False}, {"refuse_feature": ("3",)}, {"edit_kind": ("set",)}, {"largest_factor": 0.5}):
        assert not refused(guard(**bounds), Edit(3))


def test_features_that_do_not_exist() -> None:
    for outside in (-1, 8, 1 << 40):
        with pytest.raises(ValueError, match="does not exist, expected 0 to 7"):
            guard(largest_multiple=5.0).check([Edit.set(outside, 1.0)])


def test_a_gate_does_not_multiply_what_is_bounded() -> None:
    one, edits = guard(largest_edit=5.0), [Edit.set(3, 1.0)]
    one.check(edits, np.array([[0.0], [1.0]]))
    for gate in (2.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="from 0 to 1"):
            one.check(edits, np.array([[gate, 1.0]], np.float32))
    guard().check(edits, np.array([2.0]))


def test_features_by_number_label_and_name() -> None:
    one = guard(refuse_feature=("a loop", "5", "theirs:6", "mine:7"))
    assert [refused(one, Edit.ablate(n)) for n in range(8)] == [n in (1, 2, 5, 7) for n in range(8)]
    two = guard(allow_feature=("sae:sae: name", "other"))  # a label that begins like a name needs the name before it
    assert [not refused(two, Edit.ablate(n)) for n in range(8)] == [n in (3, 4) for n in range(8)]
    assert all(refused(guard(allow_feature=("theirs:3",)), Edit.ablate(n)) for n in range(8))


def test_a_list_that_names_nothing_stops_the_start() -> None:
    for entry in ("9", "-1", "no such label"):
        with pytest.raises(ValueError, match="list of features names"):
            guard(refuse_feature=(entry,)).check_start()
    with pytest.raises(ValueError, match="evaluate BUNDLE"):
        Guard(Policy(largest_multiple=2.0), 8).check_start()
    guard(refuse_feature=("a loop", "theirs:99")).check_start()


def test_a_label_that_vanishes_closes_the_list() -> None:
    labels = dict(LABELS)
    one = Guard(Policy(refuse_feature=("a loop",)), 8, labels=lambda: labels)
    one.check([Edit.ablate(4)])
    labels.clear()
    assert refused(one, Edit.ablate(1))
    assert refused(one, Edit.ablate(4))


def test_kinds() -> None:
    made = {
        "add": Edit.add(3, 1.0),
        "set": Edit.set(3, 1.0),
        "scale": Edit.scale(3, 0.5),
        "ablate": Edit.ablate(3),
        "cap": Edit.cap(3, 1.0),
    }
    for allowed in KINDS:
        one = guard(edit_kind=(allowed,))
        assert {kind: not refused(one, edit) for kind, edit in made.items()} == {k: k == allowed for k in KINDS}
        assert refused(one, Edit(3, 2.0, 1.0))
    assert kind_of(Edit(3, 0.5, 1.0, 0.0, 2.0)) is None


def test_no_edits_at_all() -> None:
    one = guard(edits=False)
    one.check([])
    assert refused(one, Edit.ablate(3))


@pytest.mark.parametrize(
    "bounds",
    [{"largest_edit": -1.0}, {"largest_factor": math.nan}, {"edit_kind": ("clamp",)}, {"allow_feature": (" ",)}],
)
def test_a_policy_that_says_nothing_sound(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Policy(**bounds)
