"""Released files, compared with what the loaders of SAELens compute from them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from command_line import refused
from foreign import activations, assert_near, assert_same
from foreign_saes.gemma_scope import sae_lens_sae
from foreign_saes.released import D_IN, D_SAE, RELEASES, arrays

from sae_runtime import load
from sae_runtime.checkpoints import circuit_tracer
from sae_runtime.checkpoints.convert import FORMATS, convert, recognise
from sae_runtime.exports import export

pytestmark = pytest.mark.filterwarnings("ignore")

# The loaders of SAELens 6.54, and the format that reads their files; None where no bundle can compute the SAE.
READ_BY = {
    "sae_lens": "sae-lens",
    "connor_rob_hook_z": "hook-z",
    "gemma_2": "gemma-scope",
    "gemma_2_transcoder": "gemma-scope",
    "gemma_3": "gemma-scope",
    "llama_scope": "llama-scope",
    "llama_scope_r1_distill": "llama-scope",
    "dictionary_learning_1": "dictionary-learning",
    "deepseek_r1": "dictionary-learning",
    "qwen_scope": "qwen-scope",
    "sparsify": "sparsify",
    "mwhanna_transcoder": "circuit-tracer",
    "mntss_clt_layer_transcoder": None,
    "temporal": None,
    "goodfire": "goodfire",
}


def test_every_loader_of_sae_lens_has_a_reader_or_a_refusal() -> None:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    assert set(NAMED_PRETRAINED_SAE_LOADERS) == set(READ_BY)
    assert {name for name in READ_BY.values() if name is not None} <= set(FORMATS)


@pytest.mark.parametrize("name", RELEASES)
def test_a_bundle_computes_what_sae_lens_makes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    release = RELEASES[name]
    path = release.save(tmp_path)
    assert recognise(path) == release.format
    folder = path.name
    theirs = sae_lens_sae(monkeypatch, path.parent, release.loader, release.repository, folder, **release.settings)
    made = assert_same(path, tmp_path / "out", D_IN, theirs.encode, theirs.forward)
    assert (made.source_format, made.model, (made.hook, made.hook_out)) == (
        release.source_format,
        release.model,
        release.hooks,
    )


@pytest.mark.parametrize(("skip", "jump"), [(True, False), (False, True), (True, True)])
def test_other_transcoders_of_circuit_tracer_are_as_its_source_has_them(tmp_path: Path, skip: bool, jump: bool) -> None:
    rng, made = np.random.default_rng(3), arrays()
    file = {**made, "W_enc": np.ascontiguousarray(made["W_enc"].T)}
    w_skip = rng.normal(0, 0.3, (16, 16)).astype(np.float32)
    threshold = rng.uniform(0, 1, D_SAE).astype(np.float32)
    file |= {"W_skip": w_skip} if skip else {}
    file |= {"activation_function.threshold": threshold} if jump else {}
    safetensors.numpy.save_file(file, tmp_path / "layer_3.safetensors")
    kind = convert(tmp_path / "layer_3.safetensors", tmp_path / "out").source_format
    assert kind in circuit_tracer.ARCHITECTURES and ("skip" in kind, "jump" in kind) == (skip, jump)
    export(tmp_path / "out", graphs=())
    ours, x = load(tmp_path / "out"), activations(50, D_IN).numpy()
    z = np.maximum(x @ made["W_enc"] + made["b_enc"], 0)
    f = np.where(z > threshold, z, 0) if jump else z
    assert_near(ours.encode(x).to_dense(), f)
    assert_near(ours.decode(ours.encode(x), x), f @ made["W_dec"] + made["b_dec"] + (x @ w_skip.T if skip else 0))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["conf.yaml", "latest_ckpt.safetensors"], "is a temporal SAE"),
        (["config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors"], "is a cross-layer transcoder"),
    ],
)
def test_kinds_that_no_bundle_computes_are_refused_by_name(tmp_path: Path, names: list[str], reason: str) -> None:
    home = tmp_path / "checkpoint"
    home.mkdir()
    for name in names:
        (home / name).write_bytes(b"")
        if name.endswith(".safetensors"):
            safetensors.numpy.save_file({"W_enc_0": np.zeros((4, 2), np.float32)}, home / name)
    for path in (home, home / names[-1]):
        assert reason in refused("convert", path, "-o", tmp_path / "out")


def _rename(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("Qwen Scope", lambda path: _rename(path.parent, "weights") / path.name, "does not tell its layer and k"),
        (
            "hook_z",
            lambda path: _rename(path, "renamed.pt"),
            "expected one of AutoEncoder|tensors of no known class|no",
        ),
        ("circuit-tracer", lambda path: _rename(path, "transcoder.safetensors"), "no checkpoint of a known format"),
    ],
)
def test_files_without_their_published_names_are_refused(tmp_path: Path, name: str, change: Any, reason: str) -> None:
    path = change(RELEASES[name].save(tmp_path))
    assert re.search(reason, refused("convert", path, "-o", tmp_path / "out"))


@pytest.mark.parametrize("name", ["Qwen Scope", "Goodfire", "hook_z"])
def test_damaged_tensors_are_refused(tmp_path: Path, name: str) -> None:
    path = RELEASES[name].save(tmp_path)
    state = torch.load(path)
    first = next(iter(state))
    torch.save({**state, first: state[first].flatten()}, path)
    message = refused("convert", path, "-o", tmp_path / "out")
    assert "has shape" in message
    torch.save({**state, "gate": torch.zeros(3)}, path)
    assert "which such an SAE does not have" in refused("convert", path, "-o", tmp_path / "out")
