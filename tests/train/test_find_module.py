import pytest
from tiny_host import torch_host

from sae_runtime.train.harvest.host_model import find_module


@pytest.mark.parametrize("hook", ["encoder.layer.0", "bert.encoder.layer.0", "encoder.layer.0@0"])
def test_a_hook_finds_the_module_with_or_without_the_name_of_the_base_model(hook: str) -> None:
    model = torch_host("bert")
    assert find_module(model, hook) is model.encoder.layer[0]


@pytest.mark.parametrize(
    "hook",
    [
        "input:encoder.layer.0",
        "encoder.layer.0@1",
        "encoder.layer.0.resid_post",
        "blocks.0.hook_resid_post",
        "tensor:layer_norm_2",
    ],
)
def test_a_hook_that_only_a_graph_has_is_refused_with_an_example(hook: str) -> None:
    with pytest.raises(ValueError, match=f"output of a module's first call, got {hook}; name the module"):
        find_module(torch_host("bert"), hook)
