"""A hook means one place: in a graph, where `splice` finds it, and in the torch model, where `attach` finds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import D_IN
from tiny_host import host_graph, no_past, run, some_ids, torch_host
from transformers import GPTNeoXConfig, GPTNeoXModel

from sae_runtime import Edit
from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.hook_tensor import find_hook
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train import attach

BundleOf = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("one_thread")
GPT2 = [
    "input:h.1",
    "input:h.1.mlp",
    "blocks.1.hook_resid_pre",
    "blocks.0.hook_resid_mid",
    "transformer.h.1.resid_mid",
    "blocks.0.hook_resid_post",
    "blocks.0.hook_attn_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.mlp.hook_in",
]
BERT = ["input:encoder.layer.1", "input:encoder.layer.1.output.LayerNorm", "blocks.0.hook_attn_out", "hook_full_embed"]
BERT += ["blocks.0.hook_normalized_resid_post", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"]


@pytest.mark.parametrize(("host", "hook"), [*(("gpt2", hook) for hook in GPT2), *(("bert", hook) for hook in BERT)])
def test_splice_and_attach_read_and_edit_the_same(bundle_of: BundleOf, tmp_path: Path, host: str, hook: str) -> None:
    sae, edits, output = bundle_of("token"), [Edit.add(7, 9.0)], {"gpt2": "logits", "bert": "last_hidden_state"}[host]
    graph = splice(host_graph(host), [Splice(bundle=sae, hook=hook)], tmp_path / "out").path
    feed = some_ids(2, 8) | (no_past(2) if host == "gpt2" else {})
    feed["attention_mask"][:] = 1
    knobs = {f"sae_{name}": array for name, array in as_inputs([edits], 150).items()}
    given = run(graph, feed | knobs | {"sae_slots": np.array([6])})
    dense = np.zeros((2, 8, 150), np.float32)
    np.put_along_axis(dense, given["sae_indices"], given["sae_values"], axis=2)
    ids = torch.from_numpy(feed["input_ids"])
    with torch.no_grad(), attach(torch_host(host), hook, sae, edits) as features:
        edited = torch_host(host)(ids)[output].numpy()
    untouched = torch_host(host)(ids)[output].detach().numpy()
    np.testing.assert_allclose(features[0].to_dense(), dense, atol=1e-4)
    assert (dense > 0).any(), "an SAE without active features shows nothing"
    change = edited - untouched
    assert np.abs(change).max() > 1e-3 * np.abs(edited).max()
    np.testing.assert_allclose(given[output] - untouched, change, atol=0.01 * np.abs(change).max())


@pytest.mark.parametrize(
    ("host", "hook", "message"),
    [
        ("gpt2", "input:h.1.ln_2", "not only .*h.1.ln_2 reads .*; hook BLOCK.resid_mid"),
        ("gpt2", "blocks.1.hook_mlp_in", "so it has no blocks.1.hook_mlp_in; write blocks.1.hook_resid_mid"),
        ("gpt2", "h.1@1", "no h.1@1, for a forward pass calls the module 1 times; write h.1@0"),
        ("gpt2", "blocks.1.ln2.hook_normalized", "no equal place .* before its weight; hook a module"),
        (
            "gpt2",
            "blocks.1.attn.hook_z",
            "is not one tensor but no activations",
        ),  # the exporter folded it into a matrix
        ("bert", "input:encoder.layer.0.intermediate", "not only .*layer.0.intermediate reads"),
        ("bert", "input:encoder.layer.0.output", "is not one tensor but .*, .*; hook tensor:NAME"),
        ("bert", "blocks.1.hook_mlp_in", "so it has no blocks.1.hook_mlp_in"),
    ],
)
def test_a_hook_without_a_place_in_the_graph_is_refused(
    bundle_of: BundleOf, tmp_path: Path, host: str, hook: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        splice(host_graph(host), [Splice(bundle=bundle_of("mutual"), hook=hook)], tmp_path / "out")


@pytest.mark.parametrize("parallel", [True, False])
def test_only_a_block_whose_mlp_reads_the_sum_behind_attention_has_a_stream_between(
    parallel: bool, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": D_IN, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = GPTNeoXConfig(**sizes, intermediate_size=32, use_parallel_residual=parallel)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = GPTNeoXModel(settings)
    graph = ir.load(export_model(model.eval(), tmp_path / "host.onnx", cache=False)).graph
    for hook in map(parse_hook, ("blocks.1.hook_resid_mid", "layers.1.resid_mid")):
        if not parallel:
            assert find_hook(graph, hook, D_IN).name != find_hook(graph, parse_hook("layers.1"), D_IN).name
            continue
        with pytest.raises(ValueError, match=r"layers.1 has no resid_mid, for its attention and MLP read the same"):
            find_hook(graph, hook, D_IN)
