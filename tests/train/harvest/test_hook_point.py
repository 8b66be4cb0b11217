"""Hooks of torch models: which module, which side and which call, compared with what torch's own hooks see."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_host import torch_host
from torch import Tensor
from transformers import AlbertConfig, AlbertModel, T5Config, T5EncoderModel

from sae_runtime.train.harvest.hook_point import Arguments, HookPoint, find_hook, hidden_states, replaced

IDS = torch.arange(3, 15).reshape(2, 6)
GIVEN = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
SHARED, CALLS = "encoder.albert_layer_groups.0.albert_layers.0", 3


@pytest.fixture(scope="module")
def albert() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": CALLS}
        model: Any = AlbertModel(AlbertConfig(vocab_size=32, num_attention_heads=2, intermediate_size=32, **sizes))
        return model.eval()


def seen_by_torch(model: Any, module: str) -> list[tuple[Tensor, Tensor]]:
    """The first argument and the first output of each call of a module, by torch's own hook."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(_module: Any, args: Any, named: Any, output: Any) -> None:
        x = args[0] if args else named["hidden_states"]
        seen.append((x.clone(), (output if isinstance(output, Tensor) else output[0]).clone()))

    handle = model.base_model.get_submodule(module).register_forward_hook(see, with_kwargs=True)
    with torch.inference_mode():
        model(**GIVEN)
    handle.remove()
    return seen


def read(model: Any, *hooks: str, whole: bool = False) -> list[Tensor]:
    return hidden_states([find_hook(model, hook) for hook in hooks], model, GIVEN, IDS.shape, whole=whole)


@pytest.mark.parametrize("hook", ["encoder.layer.0", "bert.encoder.layer.0", "encoder.layer.0@0"])
def test_a_hook_finds_the_module_with_or_without_the_name_of_the_base_model(hook: str) -> None:
    model = torch_host("bert")
    assert find_hook(model, hook).module is model.encoder.layer[0]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("host", ["bert", "gpt2"])
def test_a_hook_reads_what_torchs_hook_sees_on_its_side(host: str, whole: bool) -> None:
    model = torch_host(host)
    modules = {
        "bert": ("encoder.layer.1", "encoder.layer.0.attention", "encoder.layer.0.output.LayerNorm"),
        "gpt2": ("h.1", "h.0.mlp", "h.0.attn", "h.1.attn.c_proj"),
    }[host]
    hooks = [f"{side}{module}" for module in modules for side in ("", "input:")]
    expected = [seen_by_torch(model, module)[0][side] for module in modules for side in (1, 0)]
    for found, truth in zip(read(model, *hooks, whole=whole), expected, strict=True):
        assert torch.equal(found, truth)
    for hook, truth in zip(hooks, expected, strict=True):
        assert torch.equal(read(model, hook, whole=whole)[0], truth)


def test_each_call_of_a_shared_module_has_a_hook(albert: Any) -> None:
    seen = seen_by_torch(albert, SHARED)
    assert len(seen) == CALLS
    hooks = [f"{side}{SHARED}@{call}" for call in range(CALLS) for side in ("input:", "")]
    expected = [x for pair in seen for x in pair]
    for order in (hooks, hooks[::-1]):
        for hook, found in zip(order, read(albert, *order, whole=True), strict=True):
            assert torch.equal(found, expected[hooks.index(hook)])


@pytest.mark.parametrize("side", ["", "input:"])
def test_a_shared_module_without_a_call_is_refused_with_all_its_calls(albert: Any, side: str) -> None:
    hook = side + SHARED
    with pytest.raises(ValueError, match=f"calls {hook} 3 times; name one of its calls, {hook}@0 to {hook}@2"):
        read(albert, hook, whole=True)
    with pytest.raises(ValueError, match=f"no {hook}@3, for a forward pass calls the module 3 times; write {hook}@2"):
        read(albert, f"{hook}@3")


def test_no_layer_behind_the_last_hook_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_host("bert")
    monkeypatch.setattr(model.encoder.layer[1].output, "forward", None)
    assert len(read(model, "encoder.layer.0", "encoder.layer.1.intermediate")) == 2
    read(model, "encoder.layer.0", whole=True)  # what fails behind the hook does not matter to it
    with pytest.raises(ValueError, match=r"^BertModel fails on text \(.+\); its forward takes input_ids, "):
        read(model, "encoder.layer.1")


def test_an_activation_that_later_layers_change_in_place_is_kept_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_host("gpt2")
    before = read(model, "h.0")[0].clone()
    forward = model.transformer.h[1].forward
    monkeypatch.setattr(model.transformer.h[1], "forward", lambda x, *args, **named: forward(x.mul_(2), *args, **named))
    assert torch.equal(read(model, "h.0", "h.1")[0], before)
    assert torch.equal(read(model, "h.0", whole=True)[0], before)


@pytest.mark.parametrize("side", ["input:", ""])
def test_replaced_puts_other_activations_at_one_side_of_one_call(albert: Any, side: str) -> None:
    y = torch.randn(*IDS.shape, 16, generator=torch.Generator().manual_seed(1))
    before = seen_by_torch(albert, SHARED)
    with replaced(find_hook(albert, f"{side}{SHARED}@1"), y):
        after = seen_by_torch(albert, SHARED)
    assert torch.equal(after[0][1], before[0][1])
    assert torch.equal(after[1][0 if side else 1], y)
    assert not torch.equal(after[2][1], before[2][1])
    assert not albert.base_model.get_submodule(SHARED)._forward_hooks


class Layer(torch.nn.Module):
    """Adds up what it is given, however it is called."""

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        return sum((*args, *named.values()), start=torch.zeros(1))


X = torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda layer: layer(X, 2 * X), 5),  # the first by position
        (lambda layer: layer(hidden_states=X, residual=2 * X), 5),  # the one of that name
        (lambda layer: layer(query=X), 3),  # the only one
        (lambda layer: layer(x=X, mask=torch.ones(1, 2, 3, dtype=torch.bool), bias=torch.ones(3)), 5),  # not the others
        (lambda layer: layer(query=X, key=X, value=X), 9),  # one tensor, given three times
        (lambda layer: layer(X, X, other=2 * X), 8),
    ],
)
def test_the_input_of_a_module_is_found_among_its_arguments(call: Callable[[Layer], Tensor], expected: int) -> None:
    layer, seen = Layer(), []
    point = HookPoint("input:layer", layer, is_input=True)
    handle = point.watch(lambda given: seen.append(given.activations("input:layer")))
    call(layer)
    handle.remove()
    assert seen[0] is X
    with replaced(point, 3 * X):
        assert call(layer).eq(expected).all()


def test_several_arguments_that_may_be_activations_are_refused() -> None:
    message = "input:layer may be any of query, key; hook the output of the module that gives the one you mean"
    with pytest.raises(ValueError, match=message):
        Arguments((), {"query": X, "key": 2 * X, "length": 3}).activations("input:layer")


def test_ids_are_no_activations() -> None:
    with pytest.raises(ValueError, match=re.escape("input:wte gives [2, 6], expected [2, 6, d_in]; hook a layer")):
        read(torch_host("gpt2"), "input:wte")


def test_a_layer_of_an_encoder_with_arguments_by_position_has_its_stream_as_input() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5: Any = T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4))
    first, second = read(t5.eval(), "encoder.block.0", "input:encoder.block.1", whole=True)
    assert torch.equal(first, second)


@pytest.mark.parametrize("hook", ["tensor:layer_norm_2"])
def test_a_hook_that_only_a_graph_has_is_refused_with_an_example(hook: str) -> None:
    with pytest.raises(ValueError, match=f"a torch model is hooked at .*MODULE.*, got {hook}; write encoder.layer.3"):
        find_hook(torch_host("bert"), hook)
