"""Which module of vLLM's model a hook names, and in which form it has activations, in stand-ins for vLLM's models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_runtime.serve.vllm.hooked_module import find_module
from sae_runtime.serve.vllm.stream_form import form_of, in_arguments, in_output

ROWS, D = 5, 8


class QKVParallelLinear(nn.Linear):
    """Named as vLLM's."""


class Embedding(nn.Embedding):
    """Named as torch's."""


def of_names(names: dict[str, nn.Module]) -> Any:
    """A model with a block that has modules of these names, and the names that vLLM's Llama computes in one."""
    model: Any = nn.Module()
    for name, module in {f"model.layers.0.{name}": module for name, module in names.items()}.items():
        at = model
        *parents, last = name.split(".")
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(last, module)
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    return model


LLAMA = {
    "input_layernorm": nn.LayerNorm(D),
    "self_attn.qkv_proj": QKVParallelLinear(D, 3 * D),
    "self_attn.o_proj": nn.Linear(D, D),
    "post_attention_layernorm": nn.LayerNorm(D),
    "mlp.gate_up_proj": nn.Linear(D, 2 * D),
    "mlp.act_fn": nn.SiLU(),
    "mlp.down_proj": nn.Linear(D, D),
    "embed": Embedding(3, D),
}


@pytest.mark.parametrize(
    ("hook", "name", "is_input"),
    [
        ("layers.0", "model.layers.0", False),
        ("layers.0.resid_mid", "model.layers.0.post_attention_layernorm", True),
        ("blocks.0.hook_mlp_out", "model.layers.0.mlp", False),
        ("blocks.0.attn.hook_z", "model.layers.0.self_attn.o_proj", True),
        ("input:layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.qkv_proj", True),
    ],
)
def test_a_family_is_known_though_vllm_computes_several_of_its_modules_in_one(
    hook: str, name: str, is_input: bool
) -> None:
    found = find_module(of_names(LLAMA), hook, SimpleNamespace(model_type="llama"))
    assert (found.name, found.is_input, found.in_place) == (name, is_input, hook.endswith("resid_mid"))


@pytest.mark.parametrize(
    ("hook", "kind", "message"),
    [
        ("layers.0.mlp.act_fn", "llama", "is a SiLU without weights"),
        ("layers.0.embed", "llama", "is an embedding"),
        ("layers.0.self_attn.qkv_proj", "llama", "hook its input"),
        ("layers.0.mlp.gate_proj", "llama", "has no module"),
        ("layers.0.mlp", "bloom", "no model of type bloom was compared"),
        ("layers.0.self_attn.o_proj", "of-tomorrow", "no model of type of-tomorrow was compared"),
    ],
)
def test_a_module_that_may_compute_another_thing_than_in_transformers_is_refused(
    hook: str, kind: str, message: str
) -> None:
    find_module(of_names(LLAMA), "layers.0.input_layernorm", SimpleNamespace(model_type=kind))
    with pytest.raises(ValueError) as caught:
        find_module(of_names(LLAMA), hook, SimpleNamespace(model_type=kind))
    assert message in str(caught.value)


def test_rows_of_transformers_own_layers_have_a_first_dimension_of_one() -> None:
    x, more = torch.randn(1, ROWS, D), torch.zeros(2)
    for output in (x, (x, None), (x, more)):
        pair = in_output(output)
        assert pair is not None and pair.second is None and torch.equal(pair.first, x[0])
        changed = pair.rebuilt(pair.first + 1, None)
        assert type(changed) is type(output) and (output is x or changed[1] is output[1])
        whole: Any = changed if output is x else changed[0]
        assert torch.equal(whole, x + 1)
    assert in_output(torch.randn(4, ROWS, D)) is None and in_output(()) is None


def test_a_tensor_that_is_given_twice_is_changed_in_the_first_place() -> None:
    x = torch.randn(ROWS, D)
    pair = in_arguments((torch.arange(ROWS), x, x), {})
    assert pair is not None and pair.second is None
    (_, first, second), named = pair.rebuilt(x + 1, None)
    assert torch.equal(first, x + 1) and second is x and not named


class Norm(nn.Module):
    """Gives its input times two, and the stream: the sum of both tensors, or the second as it is."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds = adds

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        whole = x + residual if self.adds else x
        return 2 * whole, whole if self.adds else residual


class Block(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


class Model(nn.Module):
    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.block, self.norm = Block(), Norm(adds)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(*self.block(x))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("adds", "form"), [(True, "sum"), (False, "first")])
@pytest.mark.parametrize(("name", "is_input"), [("block", False), ("norm", True)])
def test_a_norm_that_adds_two_tensors_and_one_that_lets_the_second_pass(
    adds: bool, form: str, name: str, is_input: bool
) -> None:
    model = Model(adds)
    run = lambda: model(torch.randn(ROWS, D))  # noqa: E731
    assert form_of(model, model.get_submodule(name), is_input=is_input, run=run)[0] == form


def test_a_norm_at_the_end_gives_its_activations_first() -> None:
    model = Model(True)
    run = lambda: model(torch.randn(ROWS, D))  # noqa: E731
    assert form_of(model, model.norm, is_input=False, run=run)[0] == "first"
