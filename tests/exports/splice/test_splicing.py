import functools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import D_IN, make_weights
from conftest import served as served_by_numpy
from converted import SAELENS, converted
from numpy.typing import NDArray
from tiny_host import HOOKS, host_graph, next_step, no_past, open_plainly, run, slots_of, some_ids, torch_host

from sae_runtime import Edit
from sae_runtime.bundle.splices import read_splices
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train.harvest.hook_point import HookPoint, find_hook, hidden_states, replaced

BundleOf = Callable[..., Path]
Arrays = dict[str, NDArray[Any]]
Spliced = Callable[..., Path]
LARGEST = float(np.finfo(np.float32).max)
OUTPUT = {"bert": "last_hidden_state", "gpt2": "logits"}
D_SAE = 150


@pytest.fixture(scope="module")
def spliced(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Spliced:
    """Give the path of a host with an SAE in it; made once for each set of arguments. Do not alter it."""

    @functools.cache
    def give(host: str, kind: str, **settings: Any) -> Path:
        out = tmp_path_factory.mktemp("spliced")
        one = Splice(bundle=bundle_of(kind, D_SAE), hook=HOOKS[host], **settings)
        return splice(host_graph(host), [one], out).path

    return give


def feed_of(host: str, batch: int, time: int) -> Arrays:
    return some_ids(batch, time) | (no_past(batch) if host == "gpt2" else {})


def with_prefix(inputs: Arrays, name: str = "sae") -> Arrays:
    return {f"{name}_{key}": value for key, value in inputs.items()}


def activations(host: str, feed: Arrays) -> NDArray[np.float32]:
    """The activations at the hook in torch, without a past: [b, t, d_in]."""
    model = torch_host(host)
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    extra = {"position_ids": positions(mask)} if host == "gpt2" else {}
    return states(point_of(host), model, ids, mask, **extra)


def states(point: HookPoint, model: Any, ids: torch.Tensor, mask: torch.Tensor, **extra: Any) -> NDArray[np.float32]:
    [found] = hidden_states([point], model, {"input_ids": ids, "attention_mask": mask, **extra}, ids.shape)
    return np.asarray(found, np.float32)


def point_of(host: str) -> HookPoint:
    return find_hook(torch_host(host), HOOKS[host])


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def downstream(host: str, feed: Arrays, y: NDArray[Any], past: Any = None) -> Any:
    """torch's answer with y at the hook."""
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    extra: dict[str, Any] = {}
    if host == "gpt2":
        extra = {"position_ids": positions(mask)[:, -ids.shape[1] :], "past_key_values": past, "use_cache": True}
    with torch.inference_mode(), replaced(point_of(host), torch.from_numpy(np.asarray(y, np.float32))):
        return torch_host(host)(input_ids=ids, attention_mask=mask, **extra)


def features_of(kind: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    matches = served_by_numpy(kind, D_SAE, x.reshape(-1, D_IN))
    return np.where(matches.kept, matches.z, 0).reshape(*x.shape[:2], D_SAE)


def by_algebra(kind: str, x: NDArray[np.float32], inputs: Arrays, gate: Any = 1.0) -> NDArray[np.float64]:
    numbers = {name: np.repeat(inputs[name], len(x) // len(inputs[name]), axis=0) for name in inputs}
    features = numbers.pop("features")
    return witness.steer(make_weights(D_SAE, kind), x, features_of(kind, x), features, **numbers, gate=gate)


def assert_same(found: NDArray[Any], expected: Any, feed: Arrays, tolerance: float = 1e-4) -> None:
    """Assert equality at real tokens, relative to the largest number."""
    expected = np.asarray(expected, np.float64)
    real = feed["attention_mask"][:, -found.shape[1] :].astype(bool)
    assert found.shape == expected.shape
    error = np.abs(found - expected)[real].max() / np.abs(expected[real]).max()
    assert error <= tolerance, error


def busiest(kind: str, x: NDArray[np.float32], count: int) -> list[int]:
    return [int(i) for i in np.argsort(-(features_of(kind, x) > 0).sum(axis=(0, 1)), kind="stable")[:count]]


EDITS: dict[str, Callable[[int], Edit]] = {
    "set": lambda feature: Edit.set(feature, 8.0),
    "add": lambda feature: Edit.add(feature, 3.0),
    "scale": lambda feature: Edit.scale(feature, -2.0),
    "ablate": Edit.ablate,
    "cap": lambda feature: Edit.cap(feature, 2.1),
}


@pytest.mark.parametrize("host", HOOKS)
def test_a_spliced_host_without_edits_gives_the_outputs_of_the_host(spliced: Spliced, host: str, kind: str) -> None:
    feed = feed_of(host, 4, 9)
    path = spliced(host, kind)
    expected, found = run(host_graph(host), feed, basic=True), run(path, feed, basic=True)
    assert set(found) == {*expected, "sae_indices", "sae_values"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    for name, array in run(host_graph(host), feed).items():
        np.testing.assert_allclose(run(path, feed)[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
    named = [tensor.name for tensor in open_plainly(path, False).get_inputs()]
    assert named == list(feed), "a new input is not optional"


def operations(path: Path, folder: Path) -> Counter[str]:
    """The operations of a graph that onnxruntime runs, without those in branches."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    proto = onnx.load(str(folder / "optimised.onnx"), load_external_data=False)
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("host", HOOKS)
def test_an_unused_splice_runs_few_operations_and_breaks_no_fusion(
    spliced: Spliced, host: str, kind: str, tmp_path: Path
) -> None:
    before, after = operations(host_graph(host), tmp_path), operations(spliced(host, kind), tmp_path)
    assert before["SkipLayerNormalization"] > 0
    assert not before - after, "onnxruntime fuses less of the host"
    assert (after - before).total() <= (24 if kind == "token" else 12), after - before


@pytest.mark.parametrize("settings", [{}, {"read": False}, {"replace": True}])
def test_a_spliced_graph_passes_the_onnx_checker_and_repeats_no_name(
    spliced: Spliced, kind: str, settings: dict[str, bool]
) -> None:
    path = spliced("bert", kind, **settings)
    onnx.checker.check_model(str(path), full_check=True)
    names = [value.name for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph) for value in node.outputs]
    assert len(set(names)) == len(names), "a name in a branch hides another"


def test_a_condition_holds_for_a_direction_without_edits(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 4, 9)
    x = activations("bert", feed)
    asked = busiest(kind, x, 1)[0]
    direction = np.random.default_rng(4).normal(0, 1, (1, 1, D_IN)).astype(np.float32)
    holds = features_of(kind, x)[..., [asked]] > 0
    assert 0 < holds.mean() < 1
    inputs = {"when": np.array([[asked]]), "direction": direction}
    for path in (spliced("bert", kind, read=False), spliced("bert", kind)):
        found = run(path, feed | with_prefix(inputs))["last_hidden_state"]
        assert_same(found, downstream("bert", feed, x + holds * direction)[0], feed)


def test_nan_in_a_direction_or_a_bound_reaches_the_output_of_its_request(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 2, 5)
    nan = {"direction": np.zeros((2, 1, D_IN), np.float32), "above": np.zeros((2, 1), np.float32)}
    for name, array in nan.items():
        array[0] = np.nan
        inputs = with_prefix(as_inputs([[Edit.add(3, 5.0)]], D_SAE) | {"when": np.array([[1]]), name: array})
        found = run(spliced("bert", kind), feed | inputs)["last_hidden_state"]
        assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()
    alone = run(spliced("bert", kind), feed | {"sae_direction": nan["direction"]})["last_hidden_state"]
    assert np.isnan(alone[0]).all() and np.isfinite(alone[1]).all(), "a direction works without edits too"


@pytest.mark.parametrize("name", SAELENS)
@pytest.mark.parametrize("replace", [False, True])
def test_a_converted_sae_reads_and_edits_as_its_own_library_does(name: str, replace: bool, tmp_path: Path) -> None:
    sae = converted(tmp_path, name)
    one = Splice(bundle=sae.path, hook=HOOKS["bert"], replace=replace)
    path = splice(host_graph("bert"), [one], tmp_path / "out").path
    feed = feed_of("bert", 3, 9)
    x = activations("bert", feed)
    f = sae.features(x)
    feature = int((f > 0).sum(dim=(0, 1)).argmax())
    assert (f[..., feature] > 0).any()
    changed = f.clone()
    changed[..., feature] = 2 * f[..., feature] + 1
    y = sae.decoded(changed, x) + (0 if replace else torch.from_numpy(x) - sae.decoded(f, x))
    edits = with_prefix(as_inputs([[Edit(feature, factor=2.0, shift=1.0)]], D_SAE))
    found = run(path, feed | edits | {"sae_slots": np.array([sae.settings.get("k", D_SAE)])})
    assert_same(found["last_hidden_state"], downstream("bert", feed, y.numpy())[0], feed)
    dense = np.zeros((3, 9, D_SAE), np.float32)
    np.put_along_axis(dense, found["sae_indices"], found["sae_values"], axis=2)
    assert_same(dense, f.numpy(), feed, 1e-5)


@pytest.mark.parametrize("verb", EDITS)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("host", HOOKS)
def test_edits_in_a_graph_equal_the_algebra_of_the_witness(
    spliced: Spliced, host: str, kind: str, verb: str, batch: int
) -> None:
    feed = feed_of(host, batch, 9)
    x = activations(host, feed)
    inputs = as_inputs([[EDITS[verb](feature) for feature in busiest(kind, x, 3)]], D_SAE)
    found = run(spliced(host, kind), feed | with_prefix(inputs))[OUTPUT[host]]
    expected = downstream(host, feed, by_algebra(kind, x, inputs))[0]
    assert_same(found, expected, feed)
    assert np.abs(found - run(host_graph(host), feed)[OUTPUT[host]]).max() > 0.01 * np.abs(found).max()


def test_edits_hold_in_a_prompt_and_in_the_steps_after(spliced: Spliced, kind: str) -> None:
    feed, point = feed_of("gpt2", 4, 7), point_of("gpt2")
    past: Any = None
    x = activations("gpt2", feed)
    edits = with_prefix(inputs := as_inputs([[Edit.set(busiest(kind, x, 1)[0], 6.0), Edit.add(3, 2.0)]], D_SAE))
    for step in range(4):
        if step:
            ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
            place = positions(mask)[:, -1:]
            extra: dict[str, Any] = {"position_ids": place, "past_key_values": past, "use_cache": True}
            # Past keys are made anew below, where this look at the hook has added to them.
            before = [(layer.keys, layer.values) for layer in past.layers]
            x = states(point, torch_host("gpt2"), ids, mask, **extra)
            for layer, (keys, values) in zip(past.layers, before, strict=True):
                layer.keys, layer.values = keys, values
        outputs = run(spliced("gpt2", kind), feed | edits)
        answer = downstream("gpt2", feed, by_algebra(kind, x, inputs), past)
        past = answer.past_key_values
        assert_same(outputs["logits"], answer.logits, feed)
        feed = next_step(outputs, feed, outputs["logits"][:, -1].argmax(axis=1)[:, None])


@pytest.mark.parametrize("gate", [(1, 1, 1), (4, 9, 1), (1, 9, 3), (4, 1, 1)])
def test_the_gate_scales_the_edits_of_each_token(spliced: Spliced, kind: str, gate: tuple[int, ...]) -> None:
    feed = feed_of("bert", 4, 9)
    x = activations("bert", feed)
    inputs = as_inputs([[Edit.add(feature, 4.0) for feature in (5, 6, 7)]], D_SAE)
    amount = np.random.default_rng(3).uniform(0, 1, gate).astype(np.float32)
    found = run(spliced("bert", kind), feed | with_prefix(inputs | {"gate": amount}))["last_hidden_state"]
    assert_same(found, downstream("bert", feed, by_algebra(kind, x, inputs, amount))[0], feed)


def test_a_direction_is_added_to_the_activation(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 4, 9)
    x = activations("bert", feed)
    for shape in ((1, 1, D_IN), (4, 1, D_IN), (4, 9, D_IN)):
        direction = np.random.default_rng(4).normal(0, 1, shape).astype(np.float32)
        found = run(spliced("bert", kind), feed | {"sae_direction": direction})["last_hidden_state"]
        assert_same(found, downstream("bert", feed, x + direction)[0], feed)


def test_edits_apply_where_other_features_exceed_a_value(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 4, 9)
    x = activations("bert", feed)
    f, (asked, other) = features_of(kind, x), busiest(kind, x, 2)
    bound = float(np.median(f[..., asked][f[..., asked] > 0]))
    inputs = as_inputs([[Edit.add(9, 5.0)]], D_SAE)
    direction = np.full((1, 1, D_IN), 0.3, np.float32)
    for features, bounds in (([[asked]], [[bound]]), ([[asked, other]], [[bound, 0.0]])):
        condition = {"when": np.array(features), "above": np.array(bounds, np.float32), "direction": direction}
        holds = (f[..., features[0]] > bounds[0]).all(axis=-1, keepdims=True)
        if len(features[0]) == 1:
            assert 0 < holds.mean() < 1
        y = by_algebra(kind, x, inputs, holds.astype(np.float64)) + holds * direction
        found = run(spliced("bert", kind), feed | with_prefix(inputs | condition))["last_hidden_state"]
        assert_same(found, downstream("bert", feed, y)[0], feed)


def test_replace_puts_the_reconstruction_in_place_of_the_activation(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 4, 9)
    x = activations("bert", feed)
    weights, f = make_weights(D_SAE, kind), features_of(kind, x)
    inputs = as_inputs([[Edit.add(9, 5.0)]], D_SAE)
    y = f @ weights["W_dec"] + weights["b_dec"] + by_algebra(kind, x, inputs) - x
    path = spliced("bert", kind, read=False, edit=False, replace=True)
    found = run(path, feed | with_prefix(inputs))
    assert_same(found["last_hidden_state"], downstream("bert", feed, y)[0], feed)
    assert set(found) == {"last_hidden_state"}


@pytest.mark.parametrize("host", HOOKS)
def test_a_splice_gives_the_features_before_the_edits(spliced: Spliced, host: str, kind: str) -> None:
    feed = feed_of(host, 3, 9)
    x = activations(host, feed)
    edits = with_prefix(as_inputs([[Edit.set(4, 9.0)]], D_SAE))
    real = feed["attention_mask"].astype(bool)
    matches = served_by_numpy(kind, D_SAE, x[real])
    for inputs in ({}, edits, {"sae_slots": np.array([D_SAE])}, {"sae_slots": np.array([1, D_SAE, 0])}):
        if kind == "token" and "sae_slots" in inputs:
            continue  # its slots are its k
        found = run(spliced(host, kind), slots_of(spliced(host, kind)) | feed | inputs)
        indices, values = found["sae_indices"], found["sae_values"]
        assert indices.dtype == np.int64 and indices.shape == values.shape
        assert witness.disagreement(matches, indices[real], values[real]) is None


def test_nothing_is_read_unless_slots_are_asked_for(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 3, 9)
    x = activations("bert", feed)
    inputs = as_inputs([[Edit.set(busiest(kind, x, 1)[0], 9.0)]], D_SAE)
    for off in ({}, {"sae_slots": np.array([0])}, {"sae_slots": np.array([-1, 0, 0])}):
        found = run(spliced("bert", kind), feed | with_prefix(inputs) | off)
        assert found["sae_values"].shape == found["sae_indices"].shape == (3, 9, 0)
        assert_same(found["last_hidden_state"], downstream("bert", feed, by_algebra(kind, x, inputs))[0], feed)


@pytest.mark.parametrize("host", HOOKS)
def test_requests_do_not_depend_on_each_other(spliced: Spliced, host: str, kind: str) -> None:
    feed = feed_of(host, 4, 9)
    lists = [[Edit.set(1, 5.0), Edit.ablate(2)], [], [Edit.scale(3, 0.0)], [Edit.add(140, -4.0), Edit.cap(1, 2.0)]]
    found = run(spliced(host, kind), feed | with_prefix(as_inputs(lists, D_SAE)), read=True)
    others = some_ids(4, 9, seed=8)
    for row in range(4):
        mixed = {name: array.copy() for name, array in feed.items()}
        changed = [[Edit.set(77, 30.0), Edit.add(78, 2.0)]] * 4
        changed[row] = lists[row]
        for name, array in others.items():
            mixed[name][:] = np.where(np.arange(4)[:, None] == row, mixed[name], array)
        mixed["attention_mask"][:] = feed["attention_mask"]
        answer = run(spliced(host, kind), mixed | with_prefix(as_inputs(changed, D_SAE)), read=True)
        for name in found:
            np.testing.assert_array_equal(answer[name][row], found[name][row])
        alone = {name: array[row : row + 1] for name, array in feed.items()}
        answer = run(spliced(host, kind), alone | with_prefix(as_inputs([lists[row]], D_SAE)))
        assert_same(answer[OUTPUT[host]], found[OUTPUT[host]][row : row + 1], alone, 1e-5)


@pytest.mark.parametrize("name", ["features", "when"])
def test_an_unknown_feature_gives_nan_in_its_request_only(spliced: Spliced, kind: str, name: str) -> None:
    feed = feed_of("bert", 3, 9)
    inputs = with_prefix(as_inputs([[Edit.add(1, 2.0)], [Edit.add(2, 2.0)], []], D_SAE))
    good = run(spliced("bert", kind), feed | inputs)["last_hidden_state"]
    bad = inputs | {f"sae_{name}": np.array([[1], [D_SAE], [0]])}
    bad |= {"sae_above": np.full((3, 1), -1, np.float32)} if name == "when" else {}
    found = run(spliced("bert", kind), feed | bad)["last_hidden_state"]
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], good[[0, 2]])


def test_a_feature_given_twice_gives_nan_in_its_request_only(spliced: Spliced, kind: str) -> None:
    feed = feed_of("bert", 3, 9)
    inputs = with_prefix(as_inputs([[Edit.add(1, 2.0)], [Edit.add(2, 2.0), Edit.set(5, 1.0)], []], D_SAE))
    good = run(spliced("bert", kind), feed | inputs)["last_hidden_state"]
    inputs["sae_features"][1] = 2
    found = run(spliced("bert", kind), feed | inputs)["last_hidden_state"]
    assert np.isnan(found[1]).all() and np.isfinite(good).all()
    np.testing.assert_array_equal(found[[0, 2]], good[[0, 2]])


def test_several_saes_at_several_hooks_act_one_after_the_other(bundle_of: BundleOf, tmp_path: Path) -> None:
    early = Splice(bundle=bundle_of("mutual"), hook="embeddings", name="early")
    late = Splice(bundle=bundle_of("token"), hook="encoder.layer.0", name="late", read=False)
    made = splice(host_graph("bert"), [early, late], tmp_path / "out")
    feed, model = feed_of("bert", 2, 9), torch_host("bert")
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    x = states(find_hook(model, "embeddings"), model, ids, mask)
    edits = {"early": as_inputs([[Edit.set(3, 7.0)]], D_SAE), "late": as_inputs([[Edit.set(8, 5.0)]], D_SAE)}
    y = torch.from_numpy(by_algebra("mutual", x, edits["early"]).astype(np.float32))
    with replaced(find_hook(model, "embeddings"), y):
        x = states(find_hook(model, "encoder.layer.0"), model, ids, mask)
    expected = downstream("bert", feed, by_algebra("token", x, edits["late"]))[0]
    found = run(made.path, feed | with_prefix(edits["early"], "early") | with_prefix(edits["late"], "late"))
    assert_same(found["last_hidden_state"], expected, feed)
    assert set(found) == {"last_hidden_state", "early_indices", "early_values"}


def test_the_last_layer_keeps_the_name_of_the_output_with_one_sae_and_with_two(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    made = splice(host_graph("bert"), [Splice(bundle=bundle_of("mutual"), hook="encoder.layer.1")], tmp_path)
    feed = feed_of("bert", 2, 5)
    before = run(host_graph("bert"), feed)["last_hidden_state"]
    inputs = as_inputs([[Edit.add(3, 7.0)]], D_SAE)
    found = run(made.path, feed | with_prefix(inputs))["last_hidden_state"]
    np.testing.assert_allclose(found, by_algebra("mutual", before, inputs), atol=1e-4)
    two = splice(made.path, [Splice(bundle=bundle_of("token"), hook="encoder.layer.1", name="b")], tmp_path / "twice")
    more = as_inputs([[Edit.set(8, 5.0)]], D_SAE)
    twice = run(two.path, feed | with_prefix(inputs) | with_prefix(more, "b"))["last_hidden_state"]
    np.testing.assert_allclose(twice, by_algebra("token", found, more), atol=1e-4)


def test_a_float16_host_is_edited_in_float32(bundle_of: BundleOf, tmp_path: Path) -> None:
    half = ir.load(host_graph("bert"))
    hook = next(v for node in half.graph for v in node.outputs if v.name == "layer_norm_2")
    down, up = (ir.node("Cast", [hook], {"to": kind}) for kind in (ir.DataType.FLOAT16, ir.DataType.FLOAT))
    (narrow,), (wide,) = down.outputs, up.outputs
    narrow.name, wide.name, narrow.type, narrow.shape = "narrow", "wide", ir.TensorType(ir.DataType.FLOAT16), hook.shape
    ir.convenience.replace_all_uses_with(hook, wide)
    up.replace_input_with(0, narrow)
    down.replace_input_with(0, hook)
    half.graph.insert_after(hook.producer() or down, [down, up])
    (tmp_path / "half").mkdir()
    ir.save(half, tmp_path / "half" / "host.onnx", external_data="host.onnx.data")
    made = splice(tmp_path / "half" / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="tensor:narrow")], tmp_path)
    feed = feed_of("bert", 2, 5)
    inputs = as_inputs([[Edit.add(3, 7.0)]], D_SAE)
    x = activations("bert", feed).astype(np.float16).astype(np.float32)
    expected = downstream("bert", feed, by_algebra("mutual", x, inputs))[0]
    assert_same(run(made.path, feed | with_prefix(inputs))["last_hidden_state"], expected, feed, 1e-2)
    np.testing.assert_array_equal(
        run(made.path, feed, basic=True)["last_hidden_state"],
        run(tmp_path / "half" / "host.onnx", feed, basic=True)["last_hidden_state"],
    )


def test_weights_of_the_host_below_the_graph_are_referred_to_and_others_copied(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    home, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    copy_host(home)
    bundle = Path(shutil.copytree(bundle_of("mutual"), home / "sae"))
    (tmp_path / "way").symlink_to(home / "sae")
    made = splice(home / "host.onnx", [Splice(bundle=tmp_path / "way", hook="encoder.layer.0")])
    assert made.path == home / "host_sae.onnx"
    weights = f"sae_weights.{made.splices[0].weights[:16]}.safetensors"
    assert made.files == {"host.onnx.data": "referred", weights: "copied"}
    made = splice(home / "host.onnx", [Splice(bundle=bundle, hook="encoder.layer.0", name="knob")], elsewhere)
    assert made.files == {"host.onnx.data": "copied", "knob/sae_weights.safetensors": "copied"}
    assert {str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*") if path.is_file()} == {
        *("host.onnx.data", "model.onnx", "features.onnx", "README.md"),
        *(f"knob/{path.name}" for path in bundle.iterdir()),
    }
    assert made.path.stat().st_size < 200_000
    said = read_splices(open_plainly(made.path, False).get_modelmeta().custom_metadata_map)
    assert said == {"knob": made.splices[0]}
    assert said["knob"].hook == "encoder.layer.0" and said["knob"].d_sae == D_SAE
    assert "knob_features" in said["knob"].inputs
    feed = feed_of("bert", 2, 5)
    np.testing.assert_array_equal(
        run(made.path, feed, basic=True)["last_hidden_state"],
        run(home / "host.onnx", feed, basic=True)["last_hidden_state"],
    )


def copy_host(folder: Path, kind: str = "bert") -> Path:
    folder.mkdir()
    for file in host_graph(kind).parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "host.onnx"


def altered(folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the host whose protobuf was changed."""
    host = copy_host(folder)
    proto = onnx.load(str(host), load_external_data=False)
    change(proto)
    onnx.save(proto, str(host))
    return host


def forget(proto: Any) -> None:
    for node in proto.graph.node:
        del node.metadata_props[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget, "names no modules: it was optimised.*tensor:NAME, such as .*layer_norm"),
    ],
)
def test_a_host_that_cannot_be_spliced_is_refused_and_nothing_is_written(
    bundle_of: BundleOf, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    host = altered(tmp_path / "host", change)
    with pytest.raises(ValueError, match=message):
        splice(host, [Splice(bundle=bundle_of("mutual"), hook="encoder.layer.0")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hook": "encoder.layer.0.intermediate"}, "of width 32, this SAE expects width 24"),
        ({"hook": "input:encoder.layer.0.output"}, "input:model.encoder.layer.0.output is not one tensor but "),
        ({"hook": "encoder.layer.0@1"}, "there is no encoder.layer.0@1, for a forward pass calls the module 1 times"),
        ({"hook": "tensor:"}, r"a hook is .*MODULE.*, got 'tensor:'"),
        ({"hook": "encoder.layer.7"}, "no module 'encoder.layer.7'; close names are .*encoder.layer.1"),
        ({"hook": "encoder.layer.0", "name": "a b"}, "letters, digits and _, got 'a b'"),
        ({"hook": "encoder.layer.0", "name": "layer"}, "has a tensor layer_norm already"),
        ({"hook": "encoder.layer.0", "read": False, "edit": False}, "does nothing"),
        ({}, "does not say where it belongs; name a hook"),
    ],
)
def test_a_splice_that_does_not_fit_is_refused_and_nothing_is_written(
    bundle_of: BundleOf, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        splice(host_graph("bert"), [Splice(bundle=bundle_of("mutual"), **settings)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_taken_and_broken_files_are_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    one = Splice(bundle=bundle_of("mutual"), hook="encoder.layer.0")
    shutil.copyfile(host_graph("bert"), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"is a folder; name the graph of a host, such as .*other\.onnx"):
        splice(tmp_path, [one])
    with pytest.raises(ValueError, match=r"is a bundle; name it by --sae"):
        splice(one.bundle, [one])
    (tmp_path / "other.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="make a host graph: sae-runtime export-model"):
        splice(tmp_path / "host.onnx", [one])
    host = copy_host(tmp_path / "host")
    with pytest.raises(ValueError, match="is the host itself"):
        splice(host, [one], host)
    made = splice(host, [one], tmp_path / "out").path
    with pytest.raises(FileExistsError, match="--force"):
        splice(host, [one], tmp_path / "out")
    splice(host, [one], tmp_path / "out", force=True)
    with pytest.raises(ValueError, match="nothing to splice"):
        splice(host, [], tmp_path / "none")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "host.onnx.data").write_text("mine")
    with pytest.raises(FileExistsError, match="host.onnx.data already exists"):
        splice(host, [one], tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["host.onnx.data"]
    (tmp_path / "bytes.onnx").write_bytes(b"\x08\x0anonsense")
    with pytest.raises(ValueError, match="not a readable ONNX graph"):
        splice(tmp_path / "bytes.onnx", [one], tmp_path / "none")
    (host.parent / "host.onnx.data").unlink()
    with pytest.raises(FileNotFoundError, match="host.onnx.data is missing"):
        splice(host, [one], tmp_path / "none")
    assert made.exists() and not (tmp_path / "none").exists()
