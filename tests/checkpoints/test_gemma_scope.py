"""Files as published, compared with what the loaders of SAELens compute from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from foreign import assert_same
from foreign_saes.gemma_scope import SIZES, arrays, sae_lens_sae

from sae_runtime.checkpoints import gemma_scope
from sae_runtime.checkpoints.convert import convert

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")


@pytest.mark.parametrize(
    ("repo", "folder"),
    [
        ("google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_50"),
        ("google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6"),
    ],
)
@pytest.mark.parametrize(("compressed", "lower"), [(False, False), (True, True)])
def test_gemma_scope_is_read_as_sae_lens_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str, folder: str, compressed: bool, lower: bool
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    named = {name.replace("W_", "w_") if lower else name: array for name, array in arrays().items()}
    (np.savez_compressed if compressed else np.savez)(tmp_path / folder / "params.npz", **named)
    theirs = sae_lens_sae(monkeypatch, tmp_path, "gemma_2_sae_huggingface_loader", repo, folder, **SIZES)
    made = assert_same(tmp_path / folder, tmp_path / "out", 16, theirs.encode, theirs.forward)
    assert made.source_format == "jumprelu"
    assert bool(made.warnings) == ("embedding" in folder)


def test_transcoders_are_recognised_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, folder = "google/gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_50"
    home = tmp_path / "gemma-scope-2b-pt-transcoders"
    (home / folder).mkdir(parents=True)
    np.savez(home / folder / "params.npz", **arrays())
    sizes = {**SIZES, "d_out": 16}
    theirs = sae_lens_sae(monkeypatch, home, "gemma_2_transcoder_huggingface_loader", repo, folder, **sizes)
    made = assert_same(home / folder / "params.npz", tmp_path / "out", 16, theirs.encode, theirs.forward)
    assert (made.source_format, made.architecture.d_out) == ("jumprelu transcoder", 16)
    assert "since its repository is one of transcoders" in made.warnings[0]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("resid_post/layer_3_width_16k_l0_small", "jumprelu"),
        ("transcoder/layer_3_width_16k_l0_small", "jumprelu transcoder"),
        ("transcoder/layer_3_width_16k_l0_small_affine", "jumprelu skip transcoder"),
    ],
)
def test_gemma_scope_2_is_read_as_sae_lens_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, kind: str
) -> None:
    through = "transcoder" in kind
    tensors = {name.replace("W_", "w_"): array for name, array in arrays(24 if through else 16).items()}
    cfg: dict[str, Any] = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.3.output",
    }
    if through:
        cfg |= {"hf_hook_point_out": "model.layers.3.mlp.output", "affine_connection": "skip" in kind}
    if "skip" in kind:
        rng = np.random.default_rng(1)
        tensors["affine_skip_connection"] = rng.normal(0, 0.3, (16, 24)).astype(np.float32)
    (tmp_path / folder).mkdir(parents=True)
    safetensors.numpy.save_file(tensors, tmp_path / folder / "params.safetensors")
    (tmp_path / folder / "config.json").write_text(json.dumps(cfg))
    repo = "google/gemma-scope-2-1b-pt"
    theirs = sae_lens_sae(monkeypatch, tmp_path, "gemma_3_sae_huggingface_loader", repo, folder)
    made = assert_same(tmp_path / folder, tmp_path / "out", 16, theirs.encode, theirs.forward)
    assert (made.source_format, made.model, made.hook) == (kind, "google/gemma-3-1b-pt", "model.layers.3")
    assert made.hook_out == ("model.layers.3.mlp" if through else None)
    assert kind in gemma_scope.ARCHITECTURES


@pytest.mark.parametrize(
    ("folder", "hook", "hook_out"),
    [
        ("resid_post/layer_3_width_16k_l0_small", "model.layers.3", None),
        ("attn_out/layer_3_width_16k_l0_small", "input:model.layers.3.self_attn.o_proj", None),
        ("mlp_out/layer_3_width_16k_l0_small", "model.layers.3.post_feedforward_layernorm", None),
        (
            "transcoder/layer_3_width_16k_l0_small",
            "model.layers.3.pre_feedforward_layernorm",
            "model.layers.3.post_feedforward_layernorm",
        ),
    ],
)
def test_gemma_scope_2_without_a_configuration_is_told_by_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, hook: str, hook_out: str | None
) -> None:
    home = tmp_path / "models--google--gemma-scope-2-1b-pt" / "snapshots" / "0a"
    tensors = {name.replace("W_", "w_"): array for name, array in arrays().items()}
    (home / folder).mkdir(parents=True)
    safetensors.numpy.save_file(tensors, home / folder / "params.safetensors")
    repo = "google/gemma-scope-2-1b-pt"
    theirs = sae_lens_sae(monkeypatch, home, "gemma_3_sae_huggingface_loader", repo, folder)
    made = assert_same(home / folder, tmp_path / "out", 16, theirs.encode, theirs.forward)
    assert (made.model, made.hook, made.hook_out) == ("google/gemma-3-1b-pt", hook, hook_out)


@pytest.mark.parametrize(
    ("repo", "inside", "hook"),
    [
        ("gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_50", "blocks.3.hook_resid_post"),
        ("models--google--gemma-scope-9b-it-mlp", "snapshots/0a/layer_12/width_16k", "blocks.12.hook_mlp_out"),
        ("gemma-scope-27b-pt-att", "layer_1/width_131k", "blocks.1.attn.hook_z"),
        ("gemma-scope-2b-pt-res", "embedding/width_4k", "hook_embed"),
    ],
)
def test_names_of_gemma_scope_1_tell_the_model_and_the_hook(tmp_path: Path, repo: str, inside: str, hook: str) -> None:
    home = tmp_path / repo / inside
    home.mkdir(parents=True)
    np.savez(home / "params.npz", **arrays())
    made = convert(home, tmp_path / "out")
    size = repo.split("gemma-scope-")[1].split("-")[0]
    assert (made.model, made.hook) == (f"google/gemma-2-{size}{'-it' * ('-it' in repo)}", hook)


@pytest.mark.parametrize(
    ("point", "hook"),
    [
        ("model.layers.3.self_attn.o_proj.input", "input:model.layers.3.self_attn.o_proj"),
        ("model.layers.3.pre_feedforward_layernorm.output", "model.layers.3.pre_feedforward_layernorm"),
        ("model.layers.3", "model.layers.3"),
    ],
)
def test_a_point_names_a_side_of_a_module(tmp_path: Path, point: str, hook: str) -> None:
    tensors = {name.replace("W_", "w_"): array for name, array in arrays().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "hf_hook_point_in": point}))
    assert convert(tmp_path, tmp_path / "out").hook == hook


def test_settings_and_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensors = {name.replace("W_", "w_"): array for name, array in arrays().items()}
    file = tmp_path / "params.safetensors"
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match="needs its config.json"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"architecture": "topk"}')
    with pytest.raises(ValueError, match="architecture is topk, expected one of jump_relu"):
        convert(tmp_path, tmp_path / "sub" / "out")
    (tmp_path / "config.json").write_text('{"architecture": "jump_relu"}')
    safetensors.numpy.save_file({**tensors, "w_dec": np.zeros((64, 3, 16), np.float32)}, file)
    with pytest.raises(ValueError, match="crosscoders and cross-layer transcoders cannot be served"):
        convert(file, tmp_path / "out")
    del tensors["threshold"]
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match="lacks the tensor threshold"):
        convert(file, tmp_path / "out")
    file.unlink()
    np.savez(tmp_path / "params.npz", **arrays(), scaling_factor=np.full(64, 2, np.float32))
    with pytest.raises(ValueError, match="scaling_factor is not 1"):
        convert(tmp_path / "params.npz", tmp_path / "out")
