"""Steering over packed rows: of a stand-in for vLLM's model, against the runtime's SAE on each request alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import native
from packed_model import PackedModel, Runner, scheduled
from torch import nn

from sae_runtime import Edit, load
from sae_runtime.core.features import Features
from sae_runtime.serve.vllm.asking import Reader
from sae_runtime.serve.vllm.reading import as_features
from sae_runtime.serve.vllm.settings import read_settings
from sae_runtime.serve.vllm.steering import Steering
from sae_runtime.serve.vllm.stream_form import form_of

D_IN = 24
FORMS: dict[str, dict[str, Any]] = {
    "threshold": {"selection": "threshold"},
    "threshold, length": {"selection": "threshold", "norm": "length", "pre_bias": False},
    "topk": {"selection": "topk", "k": 6},
    "groupmax, layer": {"selection": "groupmax", "k": 6, "norm": "layer"},
}
IDS = {"a": [3, 9, 4, 11, 30], "b": [7, 8], "c": [5, 6, 12, 13], "d": [2]}


def of_bundle(path: Path, hook: str) -> Any:
    return read_settings({"sae": {"saes": [{"bundle": str(path), "hook": hook, "name": "mine"}]}})


def streams_after(runner: Runner, layer: int) -> list[torch.Tensor]:
    """The residual streams that a layer gives in the passes to come, after the edits."""
    seen: list[torch.Tensor] = []
    module = runner.get_model().get_submodule(f"model.layers.{layer}")
    module.register_forward_hook(lambda _m, _a, output: seen.append(output[0] + output[1]))
    return seen


def stream(ids: list[int], layer: int) -> np.ndarray[Any, Any]:
    """The activations at a layer of one request alone."""
    runner = Runner(PackedModel(D_IN))
    seen = streams_after(runner, layer)
    runner.run(["x"], {"x": ids}, padding=0)
    return seen[0].numpy()


@pytest.mark.parametrize("form", FORMS)
def test_each_request_of_a_batch_reads_and_edits_as_if_it_were_alone(form: str, tmp_path: Path) -> None:
    path = native(tmp_path / "sae", **FORMS[form])
    settings, runtime = of_bundle(path, "layers.1"), load(path)
    reader, runner = Reader(settings, 3e38), Runner(PackedModel(D_IN))
    second = {name: runtime.encode(stream(ids, 1)[1:2]).to_dense()[0] for name, ids in IDS.items() if name != "d"}
    most = {name: f.argsort()[::-1] for name, f in second.items()}
    asked: dict[str, tuple[dict[str, Any], int]] = {
        "a": ({"sae_features": "all", "sae_edits": [Edit.set(most["a"][0], 4.0), Edit.ablate(most["a"][1])]}, 5),
        "b": ({"sae_edits": [Edit.add(most["b"][0], 2.0, only_active=True)], "sae_gate": "generated"}, 1),
        "c": ({"sae_features": 3, "sae_edits": [Edit.scale(most["c"][0], 3.0)], "sae_gate": [1, 3]}, 4),
        "d": ({}, 1),
    }
    read = {name: reader.read(given) for name, (given, _) in asked.items()}
    plans = {name: None if one is None else one.plan(name, 1, ()) for name, one in read.items()}
    steering = Steering(runner, settings, runner.short, second=False)
    assert steering.sites[0].form == "sum"
    seen = streams_after(runner, 1)
    order = ["c", "a", "d", "b"]
    steering.begin(scheduled({n: (plans[n], asked[n][1]) for n in asked}, {n: len(IDS[n]) for n in asked}))
    runner.run(order, IDS)
    steering.end()
    after = dict(zip(order, torch.split(seen[0][:12], [len(IDS[n]) for n in order]), strict=True))
    reached = {"a": [0, 1, 2, 3, 4], "b": [1], "c": [1, 3], "d": []}
    for name, ids in IDS.items():
        x = stream(ids, 1)
        expected = x.copy()
        if reached[name]:
            expected[reached[name]] = runtime.steer(x[reached[name]], asked[name][0]["sae_edits"])
        np.testing.assert_allclose(after[name].numpy(), expected, atol=1e-5)
        assert (np.abs(expected - x).max() > 0.1) == bool(reached[name])
    kept = steering.kept.take(["a", "b", "c"])
    assert kept["b"] == {}
    for name, k in (("a", None), ("c", 3)):
        found = as_features(kept[name][name][0]["mine"], 150, len(IDS[name]))
        whole = runtime.encode(stream(IDS[name], 1))
        agrees(found, whole if k is None else whole.top(k))


def agrees(read: Features, expected: Features) -> None:
    read.check()
    assert np.array_equal(read.indptr, expected.indptr) and np.array_equal(read.indices, expected.indices)
    np.testing.assert_allclose(read.values, expected.values, rtol=1e-4, atol=1e-5)


def test_a_request_in_chunks_and_one_that_is_computed_again_have_each_token_once(
    bundle_of: Callable[..., Path],
) -> None:
    path = bundle_of("mutual")
    settings, runtime, runner = of_bundle(path, "layers.0"), load(path), Runner(PackedModel(D_IN))
    asked = Reader(settings, 3e38).read({"sae_features": "all"})
    assert asked is not None
    steering = Steering(runner, settings, runner.short, second=False)
    ids = [*IDS["a"], *IDS["c"]]
    passes = [(0, 3), (3, 5), (5, 6), (0, 4), (4, 9)]  # after the third pass it is preempted, and begins again
    for number, (start, end) in enumerate(passes):
        new = {} if number else {"x": (asked.plan("x", 1, ()), 5)}
        steering.begin(scheduled(new, {"x": end - start}, cached={"x": start} if number else None))
        runner.run(["x"], {"x": ids[start:end]})
        steering.end()
    agrees(as_features(steering.kept.take(["x"])["x"]["x"][0]["mine"], 150, 9), runtime.encode(stream(ids, 0)))
    assert steering.kept.take(["x"]) == {"x": {}}


@pytest.mark.parametrize("features", [2, "all"])
@pytest.mark.parametrize("form", ["threshold", "topk"])
def test_an_activation_that_overflows_is_told_for_its_own_request(form: str, features: Any, tmp_path: Path) -> None:
    path = native(tmp_path / "sae", **FORMS[form])
    settings, runtime, model = of_bundle(path, "layers.1"), load(path), PackedModel(D_IN)
    runner, asked = Runner(model), Reader(settings, 3e38).read({"sae_features": features})
    assert asked is not None
    steering = Steering(runner, settings, runner.short, second=False)
    model.model.embed.weight[8] = torch.inf
    steering.begin(scheduled({n: (asked.plan(n, 1, ()), len(IDS[n])) for n in "ab"}, {"a": 5, "b": 2}))
    runner.run(["b", "a"], IDS)
    steering.end()
    kept = steering.kept.take(["a", "b"])
    whole = runtime.encode(stream(IDS["a"], 1))
    agrees(as_features(kept["a"]["a"][0]["mine"], 150, 5), whole if features == "all" else whole.top(2))
    assert len(as_features(kept["b"]["b"][0]["mine"], 150, 1)) == 1
    with pytest.raises(ValueError, match="token 1 has features that are NaN or Inf, since the model's activation over"):
        as_features(kept["b"]["b"][0]["mine"], 150, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_an_edit_that_overflows_gives_numbers_that_no_cache_carries_to_others(
    form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """How strong a feature is, and how long an activation, is known in the worker alone."""
    settings = of_bundle(native(tmp_path / "sae", **FORMS[form]), "layers.1")
    edits = [Edit.scale(feature, 3e38) for feature in range(64)]
    asked = Reader(settings, torch.finfo(dtype).max).read({"sae_edits": edits})
    assert asked is not None
    runner = Runner(PackedModel(D_IN).to(dtype))
    steering = Steering(runner, settings, runner.short, second=False)
    seen = streams_after(runner, 1)
    steering.begin(scheduled({"a": (asked.plan("a", 1, ()), 5)}, {"a": 5, "b": 2}, cached={"b": 0}))
    hidden = runner.run(["a", "b"], IDS, padding=0)
    steering.end()
    assert seen[0].isfinite().all() and hidden.isfinite().all()
    assert seen[0][:5].abs().amax() > (1e15 if dtype != torch.float16 else 3e4), "no edit overflowed"


def test_special_tokens_are_left_out_by_the_gate_text(bundle_of: Callable[..., Path]) -> None:
    settings, runner = of_bundle(bundle_of("token"), "layers.1"), Runner(PackedModel(D_IN))
    reader = Reader(settings, 3e38)
    texts = [reader.read({"sae_edits": [Edit.set(n, 5.0)], "sae_gate": gate}) for n, gate in ((3, "text"), (4, "all"))]
    steering = Steering(runner, settings, runner.short, second=False)
    seen = streams_after(runner, 1)
    plans = {name: (one.plan(name, 1, (9, 8)), 2) for name, one in zip("ab", texts, strict=True) if one is not None}
    steering.begin(scheduled(plans, {"a": 5, "b": 2}))
    runner.run(["a", "b"], IDS)
    steering.end()
    alone = np.concatenate([stream(IDS[name], 1) for name in "ab"])
    changed = np.abs(seen[0][:7].numpy() - alone).max(axis=1) > 1e-3
    assert changed.tolist() == [True, False, True, True, True, True, True]


def test_passes_of_vllm_itself_are_left_alone(bundle_of: Callable[..., Path]) -> None:
    settings, runner = of_bundle(bundle_of("mutual"), "layers.1"), Runner(PackedModel(D_IN))
    steering = Steering(runner, settings, runner.short, second=False)
    runner.short()
    assert steering.status()["mine"]["tokens"] == 0
    steering.begin(scheduled({}, {}, finished=["gone"]))
    steering.end()


def test_a_model_that_runs_past_its_hooks_is_noticed(bundle_of: Callable[..., Path]) -> None:
    settings, runner = of_bundle(bundle_of("mutual"), "layers.1"), Runner(PackedModel(D_IN))
    asked = Reader(settings, 3e38).read({"sae_features": 3})
    assert asked is not None
    steering = Steering(runner, settings, runner.short, second=False)
    steering.begin(scheduled({"x": (asked.plan("x", 1, ()), 5)}, {"x": 5}))
    with pytest.raises(RuntimeError, match="ran past a hook"):
        steering.end()


def test_rows_of_another_order_than_the_scheduler_sent_are_noticed(bundle_of: Callable[..., Path]) -> None:
    settings, runner = of_bundle(bundle_of("mutual"), "layers.1"), Runner(PackedModel(D_IN))
    steering = Steering(runner, settings, runner.short, second=False)
    steering.begin(scheduled({"x": (None, 5)}, {"x": 5}))
    with pytest.raises(RuntimeError, match="another way"):
        runner.run(["y"], {"y": IDS["a"]})


@pytest.mark.parametrize(
    ("name", "is_input", "form"),
    [
        ("model.layers.0", False, "sum"),
        ("model.layers.2", False, "sum"),
        ("model.layers.0", True, "one"),
        ("model.layers.2", True, "sum"),
        ("model.layers.1.input_layernorm", False, "first"),
        ("model.layers.1.input_layernorm", True, "sum"),
        ("model.layers.1.mlp", False, "one"),
        ("model.embed", False, "one"),
    ],
)
def test_the_form_of_activations_is_seen_by_what_reads_them(name: str, is_input: bool, form: str) -> None:
    runner = Runner(PackedModel(D_IN))
    module = runner.get_model().get_submodule(name)
    assert form_of(runner.get_model(), module, is_input=is_input, run=runner.short)[0] == form


def test_two_tensors_that_nobody_reads_in_a_known_way_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x * 3

    model = nn.ModuleDict({"odd": Odd(), "next": nn.Linear(D_IN, D_IN)})

    def run() -> None:
        first, second = model["odd"](torch.ones(4, D_IN))
        model["next"](first * second)

    with pytest.raises(ValueError, match="hook another module"):
        form_of(model, model["odd"], is_input=False, run=run)


def test_a_module_that_has_no_row_for_each_token_is_refused() -> None:
    class ByHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed: torch.Tensor = self.q_norm(x.reshape(-1, 8))
            return normed.reshape(-1, D_IN)

    model = ByHead()
    for is_input in (False, True):
        with pytest.raises(ValueError, match="it has 12 rows of activations for 4 tokens; hook another module"):
            form_of(model, model.q_norm, is_input=is_input, run=lambda: model(torch.ones(4, D_IN)))


def test_a_hook_of_another_width_and_a_hook_that_is_not_there_are_refused(
    bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    runner = Runner(PackedModel(32))
    with pytest.raises(ValueError, match=r"SAE mine at layers.1: its activations have width 32, and the SAE reads 24"):
        Steering(runner, of_bundle(bundle_of("mutual"), "layers.1"), runner.short, second=False)
    with pytest.raises(ValueError, match=r"no module 'layers.9'; close names are model.layers"):
        Steering(runner, of_bundle(bundle_of("mutual"), "layers.9"), runner.short, second=False)
