"""Edits and gates of a batch against loops over requests, tokens and edits, in the words of the edits."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_runtime import Edit
from sae_runtime.bundle.splices import Spliced
from sae_runtime.core.edits import without_gate
from sae_runtime.core.gates import Gate, as_gate, positions, reached, spans
from sae_runtime.deployed.interventions import intervention_feed
from sae_runtime.deployed.requests import as_gates

D_SAE, D_IN = 6, 5
KINDS = ("features", "scale", "shift", "low", "high", "gate", "direction", "when", "above", "slots")
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e6])
Array = NDArray[np.float64]


def spliced(name: str, kinds: tuple[str, ...] = KINDS) -> Spliced:
    inputs = tuple(f"{name}_{kind}" for kind in kinds)
    outputs = (f"{name}_indices", f"{name}_values")
    described: dict[str, Any] = {
        "name": name,
        "hook": "h.0",
        "tensor": "x",
        "inputs": inputs,
        "outputs": outputs,
        "weights": "00",
    }
    sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "slots": 3}
    return Spliced(**described, **sizes, replace=False)


def made(feature: int, verb: str, number: float, only: bool) -> Edit:
    if verb == "ablate":
        return Edit.ablate(feature, only_active=only)
    edit: Edit = getattr(Edit, verb)(feature, number, only_active=only)
    return edit


SEEDS = st.integers(0, 2**32 - 1)  # a number makes a richer batch than Hypothesis' first few lists


def some_edits(rng: np.random.Generator, most: int, only: float) -> list[Edit]:
    features = rng.permutation(D_SAE)[: rng.integers(0, most + 1)].tolist()
    verbs = rng.choice(["set", "add", "scale", "ablate", "cap"], len(features))
    numbers = rng.choice([0.0, 1.0, -1.0, 0.5, 3.0, 1e6], len(features))
    return [
        made(feature, str(verb), float(number), bool(rng.random() < only))
        for feature, verb, number in zip(features, verbs, numbers, strict=True)
    ]


def activations(b: int, t: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return (
        np.where(rng.random((b, t, D_SAE)) < 0.5, 0, rng.uniform(0.01, 9, (b, t, D_SAE)))
        .astype(np.float32)
        .astype(float)
    )


def wanted(f: Array, requests: list[list[Edit]], gates: Array) -> Array:
    """The change of each feature of each token by the words of the edits."""
    change = np.zeros_like(f)
    for b, edits in enumerate(requests):
        for edit in edits:
            for t in range(f.shape[1]):
                old = float(f[b, t, int(edit.feature)])
                new = min(max(edit.factor * old + edit.shift, edit.low), edit.high)
                if old > 0 or not edit.only_active:
                    change[b, t, int(edit.feature)] = gates[b, t] * (new - old)
    return change


def of_graph(f: Array, feed: dict[str, NDArray[Any]], name: str) -> Array:
    """The change of each feature of each token by the inputs, as docs/reference/graphs.md says it."""
    b, t, _ = f.shape
    empty = np.zeros((1, 0))
    given = {kind: feed.get(f"{name}_{kind}", np.ones((1, 1, 1)) if kind == "gate" else empty) for kind in KINDS}
    change = np.zeros_like(f)

    def each(kind: str) -> NDArray[Any]:
        return np.broadcast_to(given[kind], (b, *given[kind].shape[1:]))

    features, scale, shift, low, high, gate, _, when, above, _ = map(each, KINDS)
    holds = np.stack([(f[request][:, when[request].astype(int)] > above[request]).all(axis=1) for request in range(b)])
    gate = np.broadcast_to(gate, (b, t, 1))
    for request in range(b):
        changed: set[int] = set()
        for e in range(features.shape[1]):
            feature = int(features[request, e])
            old = f[request, :, feature]
            numbers = (float(array[request, e]) for array in (scale, shift, low, high))
            factor, amount, least, most = numbers
            if (factor, amount) == (1, 0) and least < -1e38 and most > 1e38:
                continue  # padding
            assert feature not in changed, "the graph gives NaN"
            changed.add(feature)
            new = np.minimum(np.maximum(factor * old + amount, least), most)
            change[request, :, feature] += holds[request] * gate[request, :, 0] * (new - old)
    return change


@given(SEEDS, st.sampled_from(["none", "ones", "some", "parts"]))
@examples(60)
def test_the_inputs_of_a_batch_do_what_the_edits_say(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    b, t = rng.integers(1, 5, 2)
    most = int(rng.integers(1, 4))
    requests = [some_edits(rng, most, rng.choice([0, 0.5, 1])) for _ in range(b)]
    if rng.random() < 0.3:  # alike, but for tokens on which their features are not active
        only = rng.random(b) < rng.choice([0, 0.5])
        requests = [[replace(edit, only_active=bool(one)) for edit in requests[0]] for one in only]
    f = activations(b, t, seed)
    gates = None if kind == "none" else np.ones((b, t), np.float32)
    if kind in ("some", "parts"):
        gates = (rng.random((b, t)) < 0.5).astype(np.float32) * (1 if kind == "some" else 0.25)
    if any(len(edits) > 1 and None in map(without_gate, edits) for edits in requests):
        with pytest.raises(ValueError, match="only where it is active, which a graph cannot say beside other edits"):
            intervention_feed({"sae": spliced("sae")}, edits={"sae": requests}, gates=gates)
        return
    feed = intervention_feed({"sae": spliced("sae")}, edits={"sae": requests}, gates=gates)
    assert bool(feed) == any(requests)
    expected = wanted(f, requests, np.ones((b, t)) if gates is None else gates.astype(float))
    np.testing.assert_allclose(of_graph(f, feed, "sae"), expected, rtol=1e-5, atol=1e-6)
    dtypes = {name.removeprefix("sae_"): array.dtype for name, array in feed.items()}
    assert all(dtypes[name] == (np.int64 if name in ("features", "when") else np.float32) for name in dtypes)


def test_requests_that_differ_only_in_where_they_act_stay_apart() -> None:
    f = activations(3, 40, 7)
    edits = [[Edit.add(1, 2.0, only_active=only)] for only in (False, True, False)]
    feed = intervention_feed({"sae": spliced("sae")}, edits={"sae": edits})
    np.testing.assert_allclose(of_graph(f, feed, "sae"), wanted(f, edits, np.ones((3, 40))), rtol=1e-5)


@given(SEEDS, st.data())
@examples(20)
def test_each_of_several_saes_gets_its_own_edits(seed: int, data: st.DataObject) -> None:
    """And the inputs of one do not depend on the others'."""
    rng = np.random.default_rng(seed)
    b, names = int(rng.integers(1, 4)), ["sae", "sae_b", "c"][: rng.integers(2, 4)]  # one name begins another
    edits = {name: [some_edits(rng, 3, 0) for _ in range(b)] for name in names}
    splices = {name: spliced(name) for name in names}
    slots = {name: data.draw(st.integers(0, D_SAE)) for name in names}
    required = data.draw(st.sets(st.sampled_from([name for one in splices.values() for name in one.inputs])))
    feed = intervention_feed(splices, edits=edits, slots=slots, required=required)
    assert set(feed) >= required
    for name in names:
        one = intervention_feed({name: splices[name]}, edits=edits, slots=slots, required=required)
        own = {key: array for key, array in feed.items() if key in splices[name].inputs}
        assert own.keys() == one.keys()
        for key in own:
            np.testing.assert_array_equal(own[key], one[key])
        assert (f"{name}_slots" in own) == (slots[name] > 0 or f"{name}_slots" in required)
        f = activations(b, 3, 1)
        np.testing.assert_allclose(
            of_graph(f, own, name), wanted(f, edits[name], np.ones((b, 3))), rtol=1e-5, atol=1e-6
        )


@given(st.lists(st.integers(0, 4), max_size=4), st.sets(st.sampled_from(KINDS), min_size=1))
@examples(10)
def test_required_inputs_that_nobody_asks_for_ask_for_nothing(lengths: list[int], kinds: set[str]) -> None:
    splices = {"sae": spliced("sae")}
    feed = intervention_feed(splices, edits={"sae": [[]] * len(lengths)}, required={f"sae_{kind}" for kind in kinds})
    assert set(feed) == {f"sae_{kind}" for kind in kinds}
    whole = intervention_feed(splices, required={f"sae_{kind}" for kind in KINDS})
    f = activations(3, 4, 0)
    assert not of_graph(f, whole, "sae").any() and not whole["sae_direction"].any() and whole["sae_slots"] == [0]


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([[Edit.ablate(D_SAE)]], "feature 6 does not exist, expected 0 to 5"),
        ([[], [Edit.ablate(1), Edit.scale(1, 2.0)]], "feature 1 is edited twice in one request"),
        ([[Edit.ablate("include")]], "'include' is a label, and no labels were given"),
        ([[Edit.set(1, times=2)]], "its largest activation, which is not known"),
    ],
)
def test_edits_that_are_no_edits_of_the_graph_are_refused(edits: list[list[Edit]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        intervention_feed({"sae": spliced("sae")}, edits={"sae": edits})


def some_gate(rng: np.random.Generator) -> Gate:
    words: list[Gate] = ["all", "text", "prompt", "last_prompt", "generated", "answer"]
    if (kind := rng.integers(0, 10)) < len(words):
        return words[kind]
    if kind < 8:
        return positions(*rng.integers(0, 13, rng.integers(0, 5)).tolist())
    firsts = rng.integers(0, 12, rng.integers(0, 4)).tolist()
    return spans(*((first, first + int(rng.integers(1, 7))) for first in firsts))


@given(SEEDS)
@examples(150)
def test_a_gate_reaches_the_tokens_that_its_words_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate, prompt, answer = some_gate(rng), int(rng.integers(1, 10)), int(rng.integers(0, 5))
    total = prompt + answer
    special = rng.random(total) < 0.3
    widths = rng.integers(1, 4, prompt)
    ends = np.cumsum(widths)
    offsets = np.zeros((total, 2), np.int64)
    for token in range(prompt):
        if not special[token]:
            offsets[token] = ends[token] - widths[token], ends[token]

    def by_words(token: int) -> bool:
        match str(gate).partition("("):
            case ("positions", _, numbers):
                return token in [int(number) for number in re.findall(r"\d+", numbers)]
            case ("spans", _, text):
                pairs = re.findall(r"\((\d+), (\d+)\)", text)
                own = set(range(*offsets[token]))
                return any(own & set(range(int(first), int(end))) for first, end in pairs)
        return {
            "all": True,
            "text": not special[token],
            "prompt": token < prompt,
            "last_prompt": token == prompt - 1,
            "generated": token >= prompt,
            "answer": token >= prompt - 1,
        }[str(gate)]

    begin, end = sorted(rng.integers(0, total + 1, 2).tolist())
    for part in (slice(0, total), slice(begin, end)):  # all, and those of a step or of a chunk of a long prompt
        places = np.arange(part.start, part.stop)
        inside = reached(gate, places, prompt=prompt, special=special[part], offsets=offsets[part])
        assert (inside.dtype, inside.tolist()) == (np.dtype(bool), [by_words(token) for token in places])
    assert as_gate(gate) == gate


@given(st.sets(st.integers(0, 2**63 - 1), max_size=4))
@examples(10)
def test_numbers_of_tokens_are_a_gate_in_any_collection(numbers: set[int]) -> None:
    listed = sorted(numbers)
    forms: list[Any] = [numbers, listed, tuple(listed), frozenset(numbers), dict.fromkeys(listed)]
    forms += [np.array(listed, np.int64), [np.int64(number) for number in listed]]
    for form in forms:
        assert as_gate(form) == positions(*listed)
        if listed:
            assert as_gates(form, 2) == [positions(*listed)] * 2


@pytest.mark.parametrize(
    "gate", ["every", "", b"all", None, 3, True, {True}, {-1}, {2**63}, {1.0}, {"0"}, [[0, 3]], 1.5, {None}]
)
def test_what_is_no_gate_is_refused(gate: Any) -> None:
    with pytest.raises(ValueError, match="a gate is 'all', .* got"):
        as_gate(gate)


@pytest.mark.parametrize(
    "parts", [[(3, 3)], [(4, 3)], [(-1, 3)], [(0, 1.5)], [(0,)], [(0, 1, 2)], ["ab"], [3], [None], [(0, True)]]
)
def test_what_is_no_span_is_refused(parts: list[Any]) -> None:
    with pytest.raises(ValueError, match="a gate of spans takes pairs of characters"):
        spans(*parts)
