"""In tiny models whose blocks differ, SAEs in vLLM read and edit what transformers and `attach` do, or are refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_processes import ROOT, Called, Raised, called, needs_vllm

pytestmark = needs_vllm
CALLS = ROOT / "benchmarks" / "vllm_families.py"
# Of each: hooks of SAEs that requests read and edit, the form of a block's output, and places inside a block.
FAMILIES = {
    "gemma2": (["layers.0", "layers.2", "input:layers.1", "layers.1.resid_mid", "blocks.1.hook_attn_out"], "sum", {}),
    "cohere": (["layers.0", "layers.2", "input:layers.1", "layers.1.mlp"], "first", {}),
    "gpt2": (["h.0", "h.2", "input:h.1", "h.1.resid_mid", "blocks.1.mlp.hook_post"], "one", {}),
    "gpt_neox": (["layers.0", "layers.2", "blocks.1.hook_resid_pre", "layers.1.input_layernorm"], "one", {}),
    "bloom": (["h.0", "h.2"], "one", {"h.1.mlp": "refused", "h.1.self_attention": "refused", "input:h.1": "right"}),
}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Called]:
    with called(CALLS, tmp_path_factory.mktemp("families") / "log", VLLM_CPU_OMP_THREADS_BIND="nobind") as one:
        yield one


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_read_and_edited_as_transformers(call: Called, tmp_path: Path, kind: str) -> None:
    hooks, form, inside = FAMILIES[kind]
    call("start", kind, str(tmp_path), hooks)
    forms = call("served")
    assert forms[hooks[0]] == forms[hooks[1]] == form
    found = call("places")
    assert not {text: one for text, one in found.items() if one.startswith("wrong")}
    assert {text: found[text].partition(":")[0] for text in (*hooks, *inside)} == dict.fromkeys(hooks, "right") | inside


def test_a_place_that_is_not_known_to_be_equal_is_refused_at_start(call: Called, tmp_path: Path) -> None:
    with pytest.raises(Raised) as caught:
        call("start", "bloom", str(tmp_path), ["h.1.mlp"])
    assert caught.value.sentence.startswith("h.1.mlp is inside a block, and no model of type bloom was compared")


def test_tensor_parallel_has_the_same_stream_in_each_process(call: Called, tmp_path: Path) -> None:
    call("start", "cohere", str(tmp_path), ["layers.0", "layers.2", "input:layers.1"], tensor_parallel_size=2)
    call("served")
    call("end")
