from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_host import HOOKS, LAYERS, host_graph, next_step, no_past, open_plainly, run, some_ids, torch_host

from sae_runtime.exports.export_model import export_model

# export_model itself compares every graph with torch, for a prompt and a step after it.


def test_an_exported_encoder_gives_torchs_hidden_states_for_any_batch() -> None:
    assert [i.name for i in open_plainly(host_graph("bert"), False).get_inputs()] == ["input_ids", "attention_mask"]
    for batch, time in ((1, 1), (5, 13)):
        feed = some_ids(batch, time)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
            expected = torch_host("bert")(**tensors).last_hidden_state.numpy()
        found = run(host_graph("bert"), feed)["last_hidden_state"]
        real = feed["attention_mask"].astype(bool)
        np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


def test_types_of_tokens_are_zero_where_nobody_feeds_them() -> None:
    feed = some_ids(2, 7)
    types = {"token_type_ids": np.array([[0, 0, 0, 0, 1, 1, 1]] * 2)}
    alone, zeros, ones = (
        run(host_graph("bert"), feed | more)["last_hidden_state"]
        for more in ({}, {"token_type_ids": np.zeros_like(feed["input_ids"])}, types)
    )
    np.testing.assert_array_equal(alone, zeros)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in (feed | types).items()}
        expected = torch_host("bert")(**tensors).last_hidden_state.numpy()
    real = feed["attention_mask"].astype(bool)
    np.testing.assert_allclose(ones[real], expected[real], atol=1e-5)
    assert np.abs(ones - alone).max() > 1e-3


def test_an_exported_language_model_generates_what_torch_generates() -> None:
    feed = some_ids(3, 6) | no_past(3)
    ids, mask = (torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask"))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = torch_host("gpt2").generate(ids, attention_mask=mask, **settings)[:, 6:].numpy()
    for step in range(5):
        outputs = run(host_graph("gpt2"), feed)
        new = outputs["logits"][:, -1].argmax(axis=1)
        np.testing.assert_array_equal(new, expected[:, step])
        feed = next_step(outputs, feed, new[:, None])
    assert [name for name in outputs if name.startswith("present")] == [
        f"present.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")
    ]


@pytest.mark.parametrize("kind", HOOKS)
def test_exported_nodes_name_their_modules_and_no_path_of_the_machine(kind: str) -> None:
    proto = onnx.load(str(host_graph(kind)), load_external_data=False)
    keys = {entry.key for node in proto.graph.node for entry in node.metadata_props}
    assert keys == {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}
    assert b"site-packages" not in host_graph(kind).read_bytes()
    assert {t.external_data[0].value for t in proto.graph.initializer if t.external_data} == {"host.onnx.data"}
    assert torch_host(kind).config._attn_implementation == "sdpa", "the model was left changed"


def test_a_wrong_name_or_an_existing_file_is_refused_before_the_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ends in .onnx, got"):
        export_model(torch_host("bert"), tmp_path / "host")
    (tmp_path / "host.onnx.data").write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        export_model(torch_host("bert"), tmp_path / "host.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["host.onnx.data"]


def test_a_model_that_torch_cannot_trace_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = torch_host("bert").embeddings.forward

    def forward(**inputs: Any) -> Any:
        if inputs["input_ids"].sum() > 0:
            return own(**inputs)

    monkeypatch.setattr(torch_host("bert").embeddings, "forward", forward)
    with pytest.raises(ValueError, match=r"^torch cannot export BertModel .* read and edit it in torch with attach$"):
        export_model(torch_host("bert"), tmp_path / "host.onnx")
    assert not list(tmp_path.iterdir())
