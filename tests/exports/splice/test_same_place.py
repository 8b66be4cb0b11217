"""Several SAEs at one place of a host: each reads what the one before it wrote."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import D_IN, K, make_weights
from conftest import served as served_by_numpy
from numpy.typing import NDArray
from tiny_host import host_graph, no_past, open_plainly, run, some_ids, torch_host

from sae_runtime import Edit
from sae_runtime.bundle.splices import read_splices
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train.attaching import attach

BundleOf = Callable[..., Path]
Arrays = dict[str, NDArray[Any]]
D_SAE = 150
OUTPUT = {"bert": "last_hidden_state", "gpt2": "logits"}
PLACES = {
    "a block's output": ("bert", "encoder.layer.0"),
    "the graph's output": ("bert", "encoder.layer.1"),
    "the stream after a block": ("gpt2", "transformer.h.0"),
    "a module's input": ("gpt2", "input:transformer.h.1.mlp"),
}


def feed_of(host: str) -> Arrays:
    ids = some_ids(2, 7)
    ids["attention_mask"][:] = 1
    return ids | (no_past(2) if host == "gpt2" else {})


def spliced(host: str, splices: Sequence[Splice], out: Path, *, apart: bool) -> Path:
    """The splices in the host, by one run or by one run for each."""
    if not apart:
        return splice(host_graph(host), splices, out).path
    path = host_graph(host)
    for number, one in enumerate(splices):
        path = splice(path, [one], out / str(number)).path
    return path


def edits_of(names: Sequence[str], seed: int) -> dict[str, list[list[Edit]]]:
    """For each splice different edits of two requests."""
    rng = np.random.default_rng(seed)
    draw = {
        name: [[Edit.set(int(i), float(rng.uniform(2, 9))) for i in rng.permutation(D_SAE)[:3]] for _ in range(2)]
        for name in names
    }
    for lists in draw.values():
        lists[1] = [lists[1][0], Edit.scale(lists[1][1].feature, 3.0)]
    return draw


def given(edits: dict[str, list[list[Edit]]]) -> Arrays:
    return {f"{name}_{key}": a for name, one in edits.items() for key, a in as_inputs(one, D_SAE).items()}


def by_torch(host: str, hook: str, feed: Arrays, saes: Sequence[tuple[Path, list[list[Edit]]]]) -> NDArray[Any]:
    """The output of the live model with nested blocks of `attach`."""
    with ExitStack() as stack, torch.inference_mode():
        for bundle, edits in saes:
            stack.enter_context(attach(torch_host(host), hook, bundle, edits))
        ids = {name: torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask")}
        return np.asarray(torch_host(host)(**ids)[0])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_saes_at_one_place_act_in_the_order_given(bundle_of: BundleOf, tmp_path: Path, place: str, apart: bool) -> None:
    host, hook = PLACES[place]
    kinds = {"zz": "mutual", "a": "token", "m": "mutual"}  # neither by name nor by age
    made = spliced(
        host,
        [Splice(bundle=bundle_of(kind), hook=hook, name=name) for name, kind in kinds.items()],
        tmp_path,
        apart=apart,
    )
    feed = feed_of(host)
    untouched = run(host_graph(host), feed, basic=True)
    found = run(made, feed, basic=True)
    for name, expected in untouched.items():
        np.testing.assert_array_equal(found[name], expected)
    for names in (["zz"], ["a"], ["m", "zz"], ["zz", "a", "m"]):
        edits = edits_of(names, len(names))
        ordered = [(bundle_of(kind), edits[name]) for name, kind in kinds.items() if name in names]
        expected = by_torch(host, hook, feed, ordered)
        np.testing.assert_allclose(run(made, feed | given(edits))[OUTPUT[host]], expected, rtol=1e-4, atol=1e-3)
    backwards = [(bundle_of(kinds[name]), edits[name]) for name in reversed(kinds)]
    assert np.abs(by_torch(host, hook, feed, backwards) - expected).max() > 1e-2, "the order does not matter here"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_the_second_sae_reads_and_edits_what_the_first_wrote(
    bundle_of: BundleOf, tmp_path: Path, replace: bool, apart: bool
) -> None:
    one = Splice(bundle=bundle_of("mutual"), hook="encoder.layer.1", name="one", replace=replace)
    two = Splice(bundle=bundle_of("token"), hook="encoder.layer.1", name="two")
    seen = Splice(bundle=bundle_of("feature"), hook="encoder.layer.1", name="seen", edit=False)
    made = spliced("bert", [one, two, seen], tmp_path, apart=apart)
    feed, edits = feed_of("bert"), edits_of(["one", "two"], 5)
    x: NDArray[Any] = run(host_graph("bert"), feed)["last_hidden_state"]
    slots = {f"{name}_slots": np.array([n]) for name, n in (("one", D_SAE), ("two", K), ("seen", D_SAE))}
    found = run(made, feed | given(edits) | slots)
    for name, kind in (("one", "mutual"), ("two", "token"), ("seen", "feature")):
        matches = served_by_numpy(kind, D_SAE, x.reshape(-1, D_IN).astype(np.float32))
        indices, values = (found[f"{name}_{what}"] for what in ("indices", "values"))
        f = np.zeros((2, 7, D_SAE))
        np.put_along_axis(f, indices, values.astype(np.float64), axis=2)
        expected = np.where(matches.kept, matches.z, 0).reshape(f.shape)
        if name == "one":
            np.testing.assert_allclose(f, expected, atol=1e-4)
        else:
            assert (np.abs(f - expected) < 1e-3).mean() > 0.999  # a value at a cut may fall on either side
        if name == "seen":
            break
        numbers = as_inputs(edits[name], D_SAE)
        weights = make_weights(D_SAE, kind)
        change = witness.steer(weights, np.zeros_like(x), f, numbers.pop("features"), **numbers)
        x = change + (f @ weights["W_dec"].astype(np.float64) + weights["b_dec"] if name == "one" and replace else x)
    np.testing.assert_allclose(found["last_hidden_state"], x, atol=2e-3)


def test_a_splice_keeps_the_order_of_inputs_and_outputs_and_says_what_it_reads(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    names = ("late", "early")
    hooks = ("encoder.layer.1", "encoder.layer.0")
    splices = [Splice(bundle=bundle_of("mutual"), hook=h, name=n) for n, h in zip(names, hooks, strict=True)]
    first = open_plainly(spliced("bert", splices, tmp_path / "first", apart=False), False)
    third = Splice(bundle=bundle_of("token"), hook="encoder.layer.0", name="third")
    second = open_plainly(splice(tmp_path / "first" / "model.onnx", [third], tmp_path / "second").path, False)
    for given_by in ("get_outputs", "get_inputs", "get_overridable_initializers"):
        before, after = ([value.name for value in getattr(session, given_by)()] for session in (first, second))
        assert [name for name in after if not name.startswith("third_")] == before
    said = read_splices(second.get_modelmeta().custom_metadata_map)
    assert {name: one.hook for name, one in said.items()} == dict(
        zip((*names, "third"), (*hooks, hooks[1]), strict=True)
    )
    assert said["third"].tensor == "early/y"


def test_a_splice_whose_nodes_were_renamed_is_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    one = Splice(bundle=bundle_of("mutual"), hook="encoder.layer.0")
    made = splice(host_graph("bert"), [one], tmp_path / "first").path
    model = ir.load(made)
    for node in model.graph:
        node.name = None
    ir.save(model, made)
    with pytest.raises(ValueError, match="a tool has renamed the nodes of the splice sae; splice the host from before"):
        splice(made, [dataclasses.replace(one, name="two")], tmp_path / "second")
