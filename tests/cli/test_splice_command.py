import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import misused, refused, run
from tiny_host import HOOKS, host_graph, open_plainly, some_ids, torch_host
from tiny_host import run as run_host

from sae_runtime import load
from sae_runtime.bundle import folder as bundle

BundleOf = Callable[..., Path]
HOOK = ("--hook", "encoder.layer.0")


def test_splice_writes_a_graph_that_reads_and_edits(bundle_of: BundleOf, tmp_path: Path) -> None:
    result = run("splice", host_graph("bert"), "--sae", bundle_of("mutual"), *HOOK, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["path"] == str(tmp_path / "out" / "model.onnx")
    (one,) = said["splices"]
    assert said["files"] == {"host.onnx.data": "copied", one["file"]: "copied"}
    session = open_plainly(tmp_path / "out" / "model.onnx", False)
    assert [i.name for i in session.get_overridable_initializers()] == ["token_type_ids", *one["inputs"]]
    assert one["outputs"] == ["sae_indices", "sae_values"]
    assert one["slots"] == 24
    outputs = run_host(tmp_path / "out" / "model.onnx", some_ids(2, 5) | {"sae_slots": np.array([24])})
    assert outputs["sae_values"].shape == (2, 5, 24)
    text = run("splice", host_graph("bert"), "--sae", bundle_of("mutual"), *HOOK, "-o", tmp_path / "b.onnx").stdout
    assert text.splitlines()[0].split() == ["graph", str(tmp_path / "b.onnx")]
    assert "sae       150 features of encoder.layer.0" in text and "copied host.onnx.data" in text
    assert f"features  {tmp_path / 'b_features.onnx'}\nbeside    sae/" in text


@pytest.mark.parametrize(
    ("flags", "inputs", "outputs"),
    [
        (["--read"], {"knob_slots"}, 2),
        (["--edit"], {"knob_features", "knob_gate", "knob_direction", "knob_when"}, 0),
        (["--edit", "--read", "--required"], set(), 2),
        (["--replace"], {"knob_features", "knob_gate"}, 0),
    ],
)
def test_splice_flags_decide_the_inputs_and_outputs(
    bundle_of: BundleOf, tmp_path: Path, flags: list[str], inputs: set[str], outputs: int
) -> None:
    out = tmp_path / "m.onnx"
    sae = ("--sae", bundle_of("token"), "--name", "knob")
    assert run("splice", host_graph("bert"), *sae, *HOOK, *flags, "-o", out).exit_code == 0
    graph = onnx.load(str(out), load_external_data=False).graph
    assert inputs <= {tensor.name for tensor in graph.initializer}
    assert len(graph.output) == 1 + outputs
    required = {i.name for i in graph.input} - {tensor.name for tensor in graph.initializer}
    names = {i.name for i in graph.input if i.name.startswith("knob_")}
    assert required & names == (names if "--required" in flags else set())


def test_splice_takes_several_saes_with_a_name_and_a_hook_each(bundle_of: BundleOf, tmp_path: Path) -> None:
    two = ("--sae", bundle_of("mutual"), *HOOK, "--sae", bundle_of("token"), "--hook", "embeddings")
    assert run("splice", host_graph("bert"), *two, "--name", "a", "--name", "b", "-o", tmp_path).exit_code == 0
    outputs = run_host(tmp_path / "model.onnx", some_ids(2, 5))
    assert set(outputs) == {"last_hidden_state", "a_indices", "a_values", "b_indices", "b_values"}
    assert np.isfinite(outputs["b_values"]).all()
    assert misused("splice", host_graph("bert"), *two, "-o", tmp_path / "x").startswith("2 --sae and 1 --name;")
    (tmp_path / "t.txt").write_text("A text.")
    named = (*two, "--name", "a", "--name", "b", "--text", tmp_path / "t.txt")
    assert misused("splice", host_graph("bert"), *named, "-o", tmp_path / "x").startswith("--text holds texts for")
    assert "2 --sae and 1 --hook; give one hook for each" in misused(
        "splice", host_graph("bert"), "--sae", "a", "--sae", "b", *HOOK, "-o", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def logits_of(*arguments: str | Path) -> str:
    """What a command says of the tokens that features promote."""
    (line,) = [line for line in run(*arguments).stdout.splitlines() if line.startswith("logits ")]
    return line.removeprefix("logits").strip()


def test_the_tokens_that_features_promote_are_kept_in_the_copy_of_the_bundle(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    given = ("splice", host_graph("gpt2"), "--sae", bundle_of("mutual"), "--hook", HOOKS["gpt2"])
    for force in ((), ("--force",)):  # the second time, all files are those that are there
        assert logits_of(*given, "-o", tmp_path / "a", *force).startswith("the tokens that each feature promotes")
        assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.is_dir()) == ["sae"]
    model, sae = torch_host("gpt2"), load(tmp_path / "a" / "sae")
    norm, directions = model.transformer.ln_f, bundle.read(tmp_path / "a" / "sae").tensor("W_dec")
    with torch.no_grad():
        read = torch.from_numpy(directions - directions.mean(axis=1, keepdims=True)) * norm.weight
        expected = (read @ model.lm_head.weight.T).numpy()
    assert sae.logits is not None and load(bundle_of("mutual")).logits is None
    np.testing.assert_allclose(sae.logits.promoted_logits, -np.sort(-expected, axis=1)[:, :10], rtol=1e-3, atol=1e-3)
    assert logits_of("inspect", tmp_path / "a").startswith("the tokens that each feature promotes")
    assert logits_of("inspect", tmp_path / "a" / "sae").startswith("the tokens that each feature promotes")
    without = run(*given, "-o", tmp_path / "b", "--no-logits", "--json").stdout
    assert json.loads(without)["logits"] == {"sae": "they were not asked for"}
    assert load(tmp_path / "b" / "sae").logits is None and logits_of("inspect", tmp_path / "b").startswith("none: ")
    bert = ("splice", host_graph("bert"), "-o", tmp_path / "c", *HOOK, "--sae")
    assert logits_of(*bert, bundle_of("mutual")) == "none: the host has no head that gives logits of tokens"
    kept = logits_of(*bert, tmp_path / "a" / "sae", "--force")  # of another splice
    assert kept.startswith("the tokens that each feature promotes")


def test_splice_refuses_what_does_not_fit_in_one_sentence(bundle_of: BundleOf, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert "no module 'nowhere'; close names are" in refused(
        "splice", host_graph("bert"), "--sae", bundle_of("mutual"), "--hook", "nowhere", *out
    )
    assert "make a host graph: sae-runtime export-model" in refused(
        "splice", tmp_path / "none.onnx", "--sae", bundle_of("mutual"), *HOOK, *out
    )
    assert "no does not exist;" in refused("splice", host_graph("bert"), "--sae", tmp_path / "no", *HOOK, *out)
    assert "Missing option '--sae'" in misused("splice", host_graph("bert"))
    assert not (tmp_path / "out").exists()
