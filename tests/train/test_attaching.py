import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import Truth, Weights, true_features
from cases_hosts import random_sae
from conftest import D_IN, make_weights, served
from converted import SAELENS, converted
from native import native
from numpy.typing import NDArray
from tiny_host import HOOKS, host_graph, next_step, no_past, run, some_ids, torch_host
from transformers import AlbertConfig, AlbertForMaskedLM

from sae_runtime import Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import put_stats
from sae_runtime.bundle.labels import read_labels, write_labels
from sae_runtime.bundle.stats import counted
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train import attach

BundleOf = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("one_thread")
HOOK = "h.0"  # as harvest names it; HOOKS names it from the head
EDITS = [Edit.set(3, 40.0), Edit.scale(8, -1.0), Edit.cap(9, 2.2)]
LISTS = [EDITS, [], [Edit.add(100, 30.0)]]


@pytest.fixture(scope="module")
def spliced(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def give(kind: str) -> Path:
        one = Splice(bundle=bundle_of(kind), hook=HOOKS["gpt2"])
        return splice(host_graph("gpt2"), [one], tmp_path_factory.mktemp("spliced")).path

    return give


def generate(feed: dict[str, NDArray[Any]], steps: int, **settings: Any) -> torch.Tensor:
    """New ids [b, steps], and with return_dict_in_generate what generate gives."""
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    settings = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | settings
    answer: torch.Tensor = torch_host("gpt2").generate(ids, attention_mask=mask, **settings)
    return answer[:, ids.shape[1] :]


@pytest.mark.parametrize("edits", [EDITS, LISTS, []])
@pytest.mark.parametrize("use_cache", [True, False])
def test_attached_generation_agrees_with_the_spliced_graph(
    bundle_of: BundleOf, spliced: Callable[[str], Path], kind: str, edits: list[Any], use_cache: bool
) -> None:
    feed = some_ids(3, 8)
    with attach(torch_host("gpt2"), HOOK, bundle_of(kind), edits) as features:
        ids = generate(feed, 6, use_cache=use_cache).numpy()
    assert [f.shape for f in features] == [(3, 8), *([(3, 1)] * 5 if use_cache else [(3, 9 + i) for i in range(5)])]
    inputs = as_inputs(edits if edits and isinstance(edits[0], list) else [edits], 150)
    knobs = {f"sae_{name}": array for name, array in inputs.items()} | {
        "sae_slots": np.array([6 if kind == "token" else 150])
    }
    step = feed | no_past(3)
    for i in range(6):
        outputs = run(spliced(kind), step | knobs)
        assert (outputs["logits"][:, -1].argmax(axis=1) == ids[:, i]).all()
        dense = np.zeros((3, outputs["sae_values"].shape[1], 150), np.float32)
        np.put_along_axis(dense, outputs["sae_indices"], outputs["sae_values"], axis=2)
        live = features[i].to_dense()[:, -dense.shape[1] :]
        real = step["attention_mask"][:, -dense.shape[1] :].astype(bool)
        np.testing.assert_allclose(live[real], dense[real], atol=1e-3)
        step = next_step(outputs, step, ids[:, i : i + 1])
    plain = generate(feed, 6).numpy()
    assert (ids == plain).all() == (not edits)
    assert edits is not LISTS or (ids[1] == plain[1]).all()


def test_edits_by_label_are_those_by_number_in_a_live_model_and_in_a_graph(
    copy_of: BundleOf, spliced: Callable[[str], Path]
) -> None:
    path, feed = copy_of("mutual"), some_ids(3, 8)
    write_labels(path, {3: "first", 8: "open = file", 9: "third", 100: "last"})
    texts = {3: "first", 8: "open = file", 9: "third", 100: "last"}
    lists = [[dataclasses.replace(edit, feature=texts[int(edit.feature)]) for edit in edits] for edits in LISTS]
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    positions = (mask.cumsum(1) - 1).clamp(0)

    def logits(edits: Any) -> NDArray[np.float32]:
        with attach(torch_host("gpt2"), HOOK, path, edits), torch.no_grad():
            given: torch.Tensor = torch_host("gpt2")(ids, attention_mask=mask, position_ids=positions).logits
        return given.numpy()

    plain, by_label, by_number = (logits(edits) for edits in ([], lists, LISTS))
    np.testing.assert_array_equal(by_label, by_number)
    assert np.abs(plain - by_label)[0].max() > 0.01
    inputs = as_inputs(lists, 150, labels=read_labels(path))
    outputs = run(spliced("mutual"), feed | no_past(3) | {f"sae_{name}": array for name, array in inputs.items()})
    real = feed["attention_mask"].astype(bool)
    np.testing.assert_allclose(outputs["logits"][real], by_label[real], atol=1e-3)
    for edit, said in ((Edit.ablate("frist"), "closest are 'first'"), (Edit.ablate("last "), "twice")):
        with pytest.raises(ValueError, match=said), attach(torch_host("gpt2"), HOOK, path, [Edit.ablate(100), edit]):
            pass
    (path / "labels.jsonl").write_text("{")
    with attach(torch_host("gpt2"), HOOK, path, EDITS):  # which need no labels
        pass


def test_attached_features_agree_with_the_runtime(bundle_of: BundleOf, kind: str) -> None:
    model, feed = torch_host("bert"), some_ids(3, 8)
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    hidden: list[torch.Tensor] = []
    handle = model.encoder.layer[0].register_forward_hook(lambda _m, _a, output: hidden.append(output))
    with torch.no_grad(), attach(model, "encoder.layer.0", bundle_of(kind)) as features:
        answer = model(ids, attention_mask=mask).last_hidden_state
    handle.remove()
    with torch.no_grad():
        assert torch.equal(answer, model(ids, attention_mask=mask).last_hidden_state), "it is still attached"
    expected = load(bundle_of(kind)).encode(hidden[0].numpy())
    np.testing.assert_array_equal(features[0].indices, expected.indices)
    np.testing.assert_array_equal(features[0].indptr, expected.indptr)
    np.testing.assert_allclose(features[0].values, expected.values, rtol=1e-5)
    assert len(features) == 1 and len(expected.values) > 20


class Layer(torch.nn.Module):
    """Gives x in one of the forms that layers have."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        rest = torch.zeros(1)
        forms = {"tensor": x, "tuple": (x, rest), "list": [x, rest], "output": BaseModelOutput(last_hidden_state=x)}
        return forms[self.form]


class Model(torch.nn.Module):
    base_model_prefix = name_or_path = "tiny"
    device = torch.device("cpu")

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer = Layer(form)

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("name", SAELENS)
def test_attached_edits_of_a_converted_sae_agree_with_its_library(name: str, tmp_path: Path) -> None:
    sae, x = converted(tmp_path, name), np.random.default_rng(0).normal(0.5, 1.2, (3, 5, D_IN)).astype(np.float32)
    model = Model("tensor")
    f = sae.features(x)
    feature = int((f > 0).sum(dim=(0, 1)).argmax())
    changed = f.clone()
    changed[..., feature] += 5
    with attach(model, "layer", sae.path, [Edit.add(feature, 5.0)]) as features:
        y = model(torch.from_numpy(x))
    expected = torch.from_numpy(x) + sae.decoded(changed, x) - sae.decoded(f, x)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(features[0].to_dense(), f.numpy(), atol=1e-4)
    with attach(model, "layer", sae.path, replace=True):
        y = model(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), sae.decoded(f, x).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "form",
    [
        {"selection": "groupmax", "k": 6, "norm": "layer"},
        {"selection": "threshold", "norm": "length", "pre_bias": False},
        {"selection": "topk", "k": 6, "skip": True},
    ],
)
def test_attached_edits_of_every_architecture_agree_with_steer(form: dict[str, Any], tmp_path: Path) -> None:
    path = native(tmp_path / "sae", **form)
    runtime, x = load(path), np.random.default_rng(0).normal(0.5, 1.2, (3, 5, D_IN)).astype(np.float32)
    feature = int(runtime.encode(x).to_dense().sum(axis=(0, 1)).argmax())
    edits = [[Edit(feature, factor=2.0, shift=1.0)], [], [Edit.set(7, 3.0)]]
    model = Model("tensor")
    with attach(model, "layer", path, edits) as features:
        y = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, runtime.steer(x, edits), atol=1e-4)
    np.testing.assert_allclose(features[0].to_dense(), runtime.encode(x).to_dense(), atol=1e-4)
    f, architecture = runtime.encode(x).to_dense(), runtime.manifest.architecture
    weights, ids = bundle.read(path).weights(), np.array([[feature], [0], [7]])
    numbers: dict[str, Any] = {
        "scale": [[2.0], [1.0], [0.0]],
        "shift": [[1.0], [0.0], [3.0]],
        "low": -1e30,
        "high": 1e30,
    }
    expected = witness.steer(weights, x, f.astype(np.float64), ids, architecture.norm, **numbers)
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_attach_reads_a_transcoder_and_refuses_to_edit_or_replace(tmp_path: Path) -> None:
    path = native(tmp_path / "sae", selection="topk", k=6, pre_bias=False, d_out=7)
    model, x = Model("tensor"), np.random.default_rng(0).normal(0, 1.2, (3, 5, D_IN)).astype(np.float32)
    with attach(model, "layer", path) as features:
        y = model(torch.from_numpy(x))
    assert np.array_equal(y.numpy(), x)
    np.testing.assert_allclose(features[0].to_dense(), load(path).encode(x).to_dense(), atol=1e-4)
    refused: list[dict[str, Any]] = [{"edits": [Edit.ablate(3)]}, {"replace": True}]
    for settings in refused:
        with pytest.raises(ValueError, match="is a transcoder: .* can neither replace nor edit that"):
            with attach(model, "layer", path, **settings):
                pass


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "output"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attached_edits_reach_outputs_of_every_form(
    bundle_of: BundleOf, kind: str, form: str, dtype: torch.dtype
) -> None:
    model, x = Model(form), torch.from_numpy(np.random.default_rng(0).normal(0, 1.2, (3, 5, D_IN))).to(dtype)
    with attach(model, "layer", bundle_of(kind), LISTS):
        output = model(x)
    assert type(output) is type(model(x))
    y = output if form == "tensor" else output[0]
    assert y.dtype == dtype
    expected = load(bundle_of(kind)).steer(x.float().numpy(), LISTS)
    np.testing.assert_allclose(y.float().numpy(), expected, atol=1e-4 if dtype == torch.float32 else 0.2)
    assert np.abs(expected - x.float().numpy()).max() > 1


def test_the_gate_chooses_the_tokens_that_are_edited(bundle_of: BundleOf) -> None:
    feed, model, weights = some_ids(3, 8), torch_host("gpt2"), make_weights(150, "mutual")
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    position = (mask.cumsum(1) - 1).masked_fill(mask == 0, -1).numpy()
    edited: dict[str, list[NDArray[Any]]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _m, _a, output: edited[name].append(output.detach().numpy().copy())

    gates: dict[str, Any] = {"all": "all", "prompt": "prompt", "generated": "generated", "some": {0, 3, 8}}
    for name, gate in {"none": (), **gates}.items():
        edited[name] = []
        with attach(model, HOOK, bundle_of("mutual"), [Edit.add(7, 5.0)], gate=gate):
            handle = model.transformer.h[0].register_forward_hook(note(name))
            with torch.no_grad():
                first = model(ids, attention_mask=mask, use_cache=True)
                longer = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
                model(ids[:, :1], attention_mask=longer, past_key_values=first.past_key_values)
            handle.remove()
    change = 5.0 * weights["W_dec"][7]
    for name in gates:
        moved = np.abs(edited[name][0] - edited["none"][0] - change).max(axis=2) < 1e-4
        expected = np.isin(position, [0, 3, 8]) if name == "some" else (position >= 0) & (name != "generated")
        np.testing.assert_array_equal(moved, expected)
    step = position[:, -1] + 1  # of the token after the prompt
    for name in gates:
        same = np.abs(edited[name][1] - edited["none"][1]).max(axis=(1, 2)) < 1e-6
        changed = {"all": 1, "prompt": 0, "generated": 1, "some": 8 in step}
        assert (not same.all()) == bool(changed[name]), name
    with pytest.raises(ValueError, match="got 'some'"), attach(model, HOOK, bundle_of("mutual"), gate="some"):  # type: ignore[arg-type]
        pass


def edited_in_float64(weights: Weights, x: Truth, edits: list[Edit]) -> Truth:
    """x + (f' - f) W_dec, one edit after another."""
    features, y = true_features(weights, x.astype(np.float32)), x.copy()
    for edit in edits:
        feature = int(edit.feature)
        f = features[..., feature]
        new = np.clip(edit.factor * f + edit.shift, edit.low, edit.high)
        new = np.where((f > 0) | (not edit.only_active), new, f)
        y += (new - f)[..., None] * weights["W_dec"][feature].astype(np.float64)
    return y


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_saes_at_one_hook_apply_in_the_order_in_which_they_were_attached(
    order: tuple[int, int], tmp_path: Path
) -> None:
    paths, sizes = [tmp_path / "one", tmp_path / "two"], [160, 96]
    weights = [random_sae(path, d_sae=size) for path, size in zip(paths, sizes, strict=True)]
    edits = [[Edit.set(7, 9.0)], [Edit.scale(5, -2.0), Edit.add(3, 4.0)]]
    x = np.random.default_rng(0).normal(0, 1.2, (2, 4, 32)).astype(np.float32)
    model, first, second = Model("tensor"), order[0], order[1]
    with attach(model, "layer", paths[first], edits[first]) as outer:
        with attach(model, "layer", paths[second], edits[second]) as inner:
            y = model(torch.from_numpy(x)).numpy()
    between = edited_in_float64(weights[first], x.astype(np.float64), edits[first])
    for features, one, given in ((outer, first, x), (inner, second, between)):
        truth = true_features(weights[one], given.astype(np.float32))
        np.testing.assert_allclose(features[0].to_dense(), truth, atol=1e-4)
    np.testing.assert_allclose(y, edited_in_float64(weights[second], between, edits[second]), atol=1e-4)


def test_edits_of_active_tokens_alone_and_in_multiples_of_the_largest_activation(tmp_path: Path) -> None:
    weights, largest = random_sae(tmp_path / "sae"), np.linspace(1, 3, 160)
    put_stats(bundle.read(tmp_path / "sae"), counted(np.ones(160, np.int64), largest, 10))
    x = np.random.default_rng(0).normal(0, 1.2, (2, 30, 32)).astype(np.float32)
    where: dict[str, Any] = {"only_active": True}
    edits = [
        Edit.set(1, 6.0, **where),
        Edit.add(2, -2.0, **where),
        Edit.scale(3, 3.0, **where),
        Edit.ablate(4, **where),
    ]
    edits += [Edit.cap(5, 0.9, **where), Edit(6, -2.0, 3.0, -1.0, 2.5, only_active=True), Edit.set(7, 6.0)]
    edits += [Edit.set(8, times=2, **where), Edit.add(9, times=0.5), Edit.cap(10, times=0.5, **where)]
    plain = edits[:7] + [Edit.set(8, 2 * largest[8], **where), Edit.add(9, largest[9] / 2)]
    plain += [Edit.cap(10, largest[10] / 2, **where)]
    model = Model("tensor")
    with attach(model, "layer", tmp_path / "sae", edits):
        y = model(torch.from_numpy(x)).numpy()
    active = (true_features(weights, x)[..., :11] > 0).mean(axis=(0, 1))
    assert (active > 0).all() and (active < 0.9).all()
    np.testing.assert_allclose(y, edited_in_float64(weights, x.astype(np.float64), plain), atol=1e-4)
    with pytest.raises(ValueError, match="which is not known; measure it"):
        random_sae(tmp_path / "bare")
        with attach(model, "layer", tmp_path / "bare", [Edit.set(8, times=2)]):
            pass


def test_attach_replaces_the_activation_by_the_reconstruction(bundle_of: BundleOf, kind: str) -> None:
    model, x = Model("tensor"), np.random.default_rng(0).normal(0, 1.2, (3, 5, D_IN)).astype(np.float32)
    with attach(model, "layer", bundle_of(kind), [Edit.add(7, 5.0)], replace=True):
        y = model(torch.from_numpy(x)).numpy()
    matches, weights = served(kind, 150, x.reshape(-1, D_IN)), make_weights(150, kind)
    f = np.where(matches.kept, matches.z, 0).reshape(3, 5, -1)
    f[..., 7] += 5
    np.testing.assert_allclose(y, f @ weights["W_dec"] + weights["b_dec"], atol=1e-4)


def test_beams_get_the_edits_of_their_request(bundle_of: BundleOf) -> None:
    feed = some_ids(3, 8)
    with attach(torch_host("gpt2"), HOOK, bundle_of("mutual"), LISTS):
        together = generate(feed, 4, num_beams=2)
    for row in range(3):
        alone = {name: array[row : row + 1] for name, array in feed.items()}
        with attach(torch_host("gpt2"), HOOK, bundle_of("mutual"), LISTS[row]):
            assert torch.equal(generate(alone, 4, num_beams=2)[0], together[row])


def test_attach_refuses_hooks_features_and_lists_that_do_not_fit(bundle_of: BundleOf) -> None:
    model, ids = torch_host("gpt2"), torch.zeros(2, 3, dtype=torch.long)
    bundle = bundle_of("mutual")
    with pytest.raises(ValueError, match="close names are h.1, h.0"), attach(model, "h.9", bundle):
        pass
    with pytest.raises(ValueError, match="feature 150 does not exist"), attach(model, HOOK, bundle, [Edit.ablate(150)]):
        pass
    with pytest.raises(ValueError, match="3 lists of edits do not fit 2 requests"), attach(model, HOOK, bundle, LISTS):
        model(ids)
    with pytest.raises(ValueError, match=r"h.0.mlp.c_fc gives \[2, 3, 96\], expected \[batch, time, 24\]"):
        with attach(model, "h.0.mlp.c_fc", bundle):
            model(ids)
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks, "a failed block left hooks behind"


@pytest.mark.parametrize("hook", ["input:h.1.mlp", "input:h.1", "h.1.attn@0"])
def test_an_edit_at_either_side_of_a_module_changes_that_side(bundle_of: BundleOf, hook: str) -> None:
    model, module, ids = torch_host("gpt2"), hook.removeprefix("input:").removesuffix("@0"), torch.arange(12).view(2, 6)
    sides: dict[bool, list[NDArray[np.float32]]] = {False: [], True: []}

    def see(_module: Any, args: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        sides[edited].append(np.asarray((args[0] if hook.startswith("input:") else output).detach()))

    def run_model() -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(model(ids).logits)

    for edited in (False, True):
        edits = [Edit.add(7, 5.0)] if edited else []
        with attach(model, hook, bundle_of("mutual"), edits) as features:
            handle = model.transformer.get_submodule(module).register_forward_hook(see)  # it sees what attach left
            logits = run_model()
            handle.remove()
        expected = load(bundle_of("mutual")).encode(sides[False][0]).to_dense()
        np.testing.assert_allclose(features[0].to_dense(), expected, atol=1e-4)
    decoder = make_weights(150, "mutual")["W_dec"][7]
    np.testing.assert_allclose(sides[True][0] - sides[False][0], np.broadcast_to(5 * decoder, (2, 6, D_IN)), atol=1e-4)
    assert np.abs(logits - run_model()).max() > 0.01


def albert() -> Any:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_size": D_IN, "num_hidden_layers": 3}
    model: Any = AlbertForMaskedLM(AlbertConfig(vocab_size=32, num_attention_heads=2, intermediate_size=32, **sizes))
    return model.eval()


def test_a_module_of_several_calls_is_edited_at_the_call_that_the_hook_names(bundle_of: BundleOf) -> None:
    model, ids, layer = albert(), torch.arange(12).view(2, 6), "encoder.albert_layer_groups.0.albert_layers.0"
    outputs: list[NDArray[np.float32]] = []
    with torch.no_grad(), attach(model, f"{layer}@1", bundle_of("mutual"), [Edit.add(7, 5.0)]) as features:
        watched = model.albert.get_submodule(layer)
        handle = watched.register_forward_hook(lambda _m, args, _o: outputs.append(np.asarray(args[0])))
        for _ in range(2):
            model(ids)
        handle.remove()
    assert len(features) == 2 and len(outputs) == 6
    second = np.asarray(model.albert.get_submodule(layer)(torch.from_numpy(outputs[1])).detach())
    expected = second + 5 * make_weights(150, "mutual")["W_dec"][7]
    np.testing.assert_allclose(outputs[2], expected, atol=1e-4)


def test_a_module_of_several_calls_needs_the_number_of_one(bundle_of: BundleOf) -> None:
    model, ids, layer = albert(), torch.arange(12).view(2, 6), "encoder.albert_layer_groups.0.albert_layers.0"
    for called in (model, model.albert):
        with attach(model, layer, bundle_of("mutual")):
            with pytest.raises(
                ValueError, match=f"calls {layer} 3 times; name one of its calls, {layer}@0 to {layer}@2"
            ):
                called(ids)
        with attach(model, f"{layer}@3", bundle_of("mutual"), [Edit.add(7, 5.0)]):
            with pytest.raises(ValueError, match=f"no {layer}@3, for a forward pass .* 3 times; write {layer}@2"):
                called(ids)


@pytest.mark.parametrize("hook", ["h.0", "input:h.1", "h.0.resid_mid"])
@pytest.mark.parametrize("edits", [[], [Edit.scale(7, -2.0), Edit.add(8, 3.0)]])
@pytest.mark.parametrize("name", ["layer norm", "length", "no pre-bias"])
def test_gradients_flow_through_edits(hook: str, edits: list[Edit], name: str, tmp_path: Path) -> None:
    model, sae = torch_host("gpt2"), converted(tmp_path, name).path
    embedded = model.transformer.wte(torch.arange(12).view(2, 6)).detach()
    along = 1e-3 * torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0))

    def score(x: torch.Tensor) -> torch.Tensor:
        with attach(model, hook, sae, edits) as features:
            logits = model(inputs_embeds=x).logits
        assert features[0].l0().mean() > 0
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        return torch.as_tensor((logits * weights).sum())

    x = embedded.clone().requires_grad_()
    [gradient] = torch.autograd.grad(score(x), [x])
    with torch.no_grad():
        difference = score(embedded + along) - score(embedded - along)
    assert float((gradient * 2 * along).sum()) == pytest.approx(float(difference), rel=0.05, abs=0.01)
    assert abs(float(difference)) > 0.05


def test_under_autocast_the_features_are_those_of_float32(bundle_of: BundleOf) -> None:
    model, feed = torch_host("bert"), some_ids(3, 8)
    hidden: list[torch.Tensor] = []
    handle = model.encoder.layer[0].register_forward_hook(lambda _m, _a, output: hidden.append(output))
    with torch.no_grad(), attach(model, "encoder.layer.0", bundle_of("token")) as features:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.from_numpy(feed["input_ids"]))
    handle.remove()
    expected = load(bundle_of("token")).encode(hidden[0].float().numpy())
    np.testing.assert_array_equal(features[0].indices, expected.indices)
    np.testing.assert_allclose(features[0].values, expected.values, rtol=1e-5)


def test_edits_come_alone_in_a_list_or_in_a_list_for_each_request(bundle_of: BundleOf) -> None:
    x, one = torch.randn(2, 3, D_IN, generator=torch.Generator().manual_seed(0)), Edit.add(3, 5.0)
    ways: list[Any] = [one, [one], (one,), iter([one]), [[one]], [[one], [one]]]
    results = []
    for edits in ways:
        model = Model("tensor")
        with attach(model, "layer", bundle_of("token"), edits):
            results.append(model(x))
    assert all(torch.equal(y, results[0]) for y in results) and not torch.equal(results[0], x)
    for wrong, kind in (([[one], one], "list"), ([one, 3], "int"), (3, "int"), ("ab", "str"), ({3: one}, "int")):
        with pytest.raises(ValueError, match=f"edits must be a list of Edit, .* got {kind} in a list"):
            attach(Model("tensor"), "layer", bundle_of("token"), wrong).__enter__()  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_token_that_is_not_finite_is_named_unless_it_is_padding(
    bundle_of: BundleOf, kind: str, number: float
) -> None:
    model, feed = torch_host("gpt2"), {name: torch.from_numpy(array) for name, array in some_ids(3, 8).items()}
    feed["attention_mask"] = torch.ones(3, 8, dtype=torch.int64)

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[1, 2] = number
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.get_submodule("transformer.h.0").register_forward_hook(spoil)
    try:
        for edits in ([], EDITS):
            with (
                attach(model, HOOK, bundle_of(kind), edits),
                pytest.raises(
                    ValueError, match=r"^token 2 of request 1 at h.0 is NaN or Inf, or its features overflow"
                ),
            ):
                model(**feed)
            masked = feed | {"attention_mask": torch.ones(3, 8, dtype=torch.int64)}
            masked["attention_mask"][1, :3] = 0
            with attach(model, HOOK, bundle_of(kind), edits) as features:
                model(**masked)
            assert features[0].l0()[1, 2] == 0 and features[0].l0().sum() > 40
            features[0].check()
    finally:
        handle.remove()


@pytest.mark.parametrize("replace", [False, True])
def test_an_edit_that_overflows_the_type_of_the_model_is_refused(bundle_of: BundleOf, replace: bool) -> None:
    model = copy.deepcopy(torch_host("gpt2")).to(torch.float16)
    feed = {name: torch.from_numpy(array) for name, array in some_ids(3, 8).items()}
    with (
        attach(model, HOOK, bundle_of("mutual"), [Edit.add(3, 1e6)], replace=replace),
        pytest.raises(ValueError, match=r"^token \d of request 0 .* or its edited activation in float16 overflow"),
    ):
        model(**feed)
    with attach(model, HOOK, bundle_of("mutual"), [Edit.add(3, 1e4)], replace=replace):
        model(**feed)
