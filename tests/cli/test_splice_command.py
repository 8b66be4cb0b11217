import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import misused, refused, run
from tiny_host import host_graph, open_plainly, some_ids
from tiny_host import run as run_host

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
