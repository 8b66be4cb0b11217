"""Models whose positions, types of tokens or refusals differ from what most models have."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import GROUPED, SETTINGS, USUAL
from exported_models import Case, made, of
from tiny_host import host_graph, run, torch_host

from sae_runtime.exports.export_model import export_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("kind", "head"), [("Roberta", "ForCausalLM"), ("Bert", "LMHeadModel")])
def test_a_decoder_of_berts_kind_counts_positions_as_it_does_without_padding(
    kind: str, head: str, tmp_path: Path
) -> None:
    settings = {**SETTINGS[kind.lower()], "is_decoder": True}
    model = made(Case(of(f"{kind}{head}", f"{kind}Config", settings)))
    graph = export_model(model, tmp_path / "host.onnx")
    ids = np.random.default_rng(0).integers(4, 64, (2, 6))
    ids[0, :2] = 0  # padding
    mask = (ids != 0).astype(np.int64)
    past = {f"past_key_values.{i}.{of}": np.empty((2, 4, 0, 8), np.float32) for i in (0, 1) for of in ("key", "value")}
    feed: dict[str, Any] = {"input_ids": ids[:, :5], "attention_mask": mask[:, :5], **past}
    first = run(graph, feed)
    past = {name: first[name.replace("past_key_values", "present")] for name in past}
    second = run(graph, {"input_ids": ids[:, 5:], "attention_mask": mask, **past})
    found = np.concatenate([first["logits"], second["logits"]], axis=1)
    for row in (0, 1):
        real = mask[row].astype(bool)
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids[row : row + 1, real])).logits[0].numpy()
        np.testing.assert_allclose(found[row, real], expected, atol=1e-5 * np.abs(expected).max())


def test_a_model_whose_rotary_positions_change_with_the_length_is_refused(tmp_path: Path) -> None:
    """Texts of the comparison are too short to show it."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}}
    settings = {**GROUPED, **rope, "original_max_position_embeddings": 64}
    model = made(Case(of("Phi3ForCausalLM", "Phi3Config", settings)))
    with pytest.raises(ValueError, match=r"texts of more than 64 tokens \(longrope\), and a graph cannot; read and"):
        export_model(model, tmp_path / "host.onnx")
    assert not any(tmp_path.iterdir())


def test_a_model_that_reads_blocks_of_random_places_is_refused(tmp_path: Path) -> None:
    settings = {**USUAL, "block_size": 8, "num_random_blocks": 1}
    with pytest.raises(ValueError, match="reads long texts by blocks .*attention_type='original_full'$"):
        export_model(made(Case(of("BigBirdModel", "BigBirdConfig", settings))), tmp_path / "host.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "reason"), [("Longformer", "modeling_longformer"), ("XLNet", "no ONNX for aten.sub")])
def test_what_torch_prints_when_it_fails_is_kept_off_stderr(
    kind: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = made(Case(of(f"{kind}Model", f"{kind}Config", SETTINGS[kind.lower()])))
    capfd.readouterr()
    with pytest.raises(ValueError, match=rf"^torch cannot export {kind}Model .*{reason}.* with attach$"):
        export_model(model, tmp_path / "host.onnx")
    assert capfd.readouterr() == ("", "")


def test_weights_that_a_spliced_graph_reads_are_not_replaced_by_those_of_another_model(tmp_path: Path) -> None:
    home = Path(shutil.copytree(host_graph("bert").parent, tmp_path / "model"))
    shutil.copy(home / "host.onnx", home / "host_sae.onnx")
    before = {path: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(
        FileExistsError, match=r"host\.onnx\.data holds weights that host_sae\.onnx reads, and other ones"
    ):
        export_model(torch_host("gpt2"), home / "host.onnx", force=True)
    assert {path: path.read_bytes() for path in home.iterdir()} == before
