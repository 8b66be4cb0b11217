import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import activations, assert_near, assert_same, pre_activations
from foreign_saes.dictionary_learning import CASES, D_IN, D_SAE, K, make, save

from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints import dictionary_learning
from sae_runtime.checkpoints.convert import convert


def test_every_class_is_tested() -> None:
    assert set(CASES) == set(dictionary_learning.ARCHITECTURES)


@pytest.mark.parametrize(("kind", "size"), [*((kind, (D_IN, D_SAE)) for kind in CASES), ("BatchTopKSAE", (24, 512))])
def test_a_bundle_computes_what_the_library_does(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    path = save(make(kind, *size), tmp_path / "run", kind, steps=100_000)
    module = type(make(kind)).from_pretrained(path / "ae.pt")  # as its load_dictionary does
    made = assert_same(path, tmp_path / "out", size[0], module.encode, module)
    assert (made.source_format, made.model, made.hook) == (kind, "tiny", "layers.1")
    assert bool(made.warnings) == (kind == "AutoEncoder")
    expected = {"AutoEncoderTopK": ("token", K), "BatchTopKSAE": ("mutual", K), "MatryoshkaBatchTopKSAE": ("mutual", K)}
    allocation = None if made.allocation is None else (made.allocation.kind, made.allocation.k)
    assert allocation == expected.get(kind)


def test_an_autoencoder_of_unit_rows_stays_as_it_is(tmp_path: Path) -> None:
    module = make("AutoEncoder")
    with torch.no_grad():
        module.decoder.weight /= module.decoder.weight.norm(dim=0)
    made = assert_same(save(module, tmp_path / "run", None), tmp_path / "out", D_IN, module.encode, module)
    assert made.warnings == ()


@pytest.mark.parametrize("kind", [k for k in CASES if k not in ("AutoEncoderTopK", "BatchTopKSAE")])
def test_the_tensors_of_most_classes_identify_the_class(tmp_path: Path, kind: str) -> None:
    path = save(make(kind), tmp_path / "run", None)
    assert convert(path / "ae.pt", tmp_path / "out").source_format == kind


def test_two_classes_need_the_configuration_to_be_identified(tmp_path: Path) -> None:
    path = save(make("BatchTopKSAE"), tmp_path / "run", None)
    with pytest.raises(ValueError, match="is an AutoEncoderTopK or a BatchTopKSAE, which only config.json tells"):
        convert(path, tmp_path / "out")


def test_matrices_under_other_names_are_read(tmp_path: Path) -> None:
    module = make("BatchTopKSAE")
    path = save(module, tmp_path / "run", "BatchTopKSAE")
    state = module.state_dict()
    state["W_enc"] = state.pop("encoder.weight").T
    state["b_enc"] = state.pop("encoder.bias")
    state["W_dec"] = state.pop("decoder.weight").T
    torch.save(state, path / "ae.pt")
    assert_same(path, tmp_path / "out", D_IN, module.encode, module)


def test_an_unset_threshold_gives_a_bundle_without_threshold(tmp_path: Path) -> None:
    module = make("BatchTopKSAE")
    module.threshold.fill_(-1.0)
    made = convert(save(module, tmp_path / "run", "BatchTopKSAE"), tmp_path / "out")
    assert not bundle.read(tmp_path / "out", calibrated=False).calibrated
    assert "never set" in made.warnings[0]
    x = activations(300, D_IN)
    with torch.no_grad():
        assert_near(pre_activations(made, x), module.encode(x).numpy())


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("trainer", [{"dict_class": None, "trainer_class": True}, {}])
def test_old_files_keep_k_in_the_configuration(tmp_path: Path, kind: str, trainer: dict[str, Any]) -> None:
    module = make(kind)
    module.threshold.fill_(-1.0)
    if "trainer_class" in trainer:
        trainer = {**trainer, "trainer_class": dictionary_learning._TRAINERS[kind][1]}
    path = save(module, tmp_path / "run", kind, **trainer, k=K)
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in ("k", "threshold")}
    torch.save(state, path / "ae.pt")
    if kind == "AutoEncoderTopK":
        made = assert_same(path, tmp_path / "out", D_IN, module.encode, module)
    else:
        made = convert(path, tmp_path / "out")
        assert "never set" in made.warnings[0] and "threshold" not in made.weights
        x = activations(300, D_IN)
        with torch.no_grad():
            assert_near(pre_activations(made, x), module.encode(x).numpy())
    assert made.source_format == kind
    assert made.allocation is not None and made.allocation.k == K


def test_a_file_without_k_needs_a_configuration_that_says_it(tmp_path: Path) -> None:
    module = make("BatchTopKSAE")
    path = save(module, tmp_path / "run", "BatchTopKSAE")
    torch.save({name: t for name, t in module.state_dict().items() if name != "k"}, path / "ae.pt")
    with pytest.raises(ValueError, match="does not say k"):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("io", "hook", "hook_out"),
    [("out", "layers.1", None), ("in", "input:layers.1", None), ("in_and_out", "input:layers.1", "layers.1")],
)
@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_the_side_of_the_module_is_kept(tmp_path: Path, kind: str, io: str, hook: str, hook_out: str | None) -> None:
    module = make(kind)
    path = save(module, tmp_path / "run", kind)
    config = json.loads((path / "config.json").read_text())
    config["buffer"]["io"] = io
    (path / "config.json").write_text(json.dumps(config))
    made = assert_same(path, tmp_path / "out", D_IN, module.encode, module)
    assert (made.hook, made.hook_out) == (hook, hook_out)
    assert (made.architecture.d_out is not None) == (hook_out is not None)
    assert made.provenance["fitted_on"] == {"ctx_len": 128, "io": io}


def test_the_librarys_own_name_of_a_layer_is_a_hook(tmp_path: Path) -> None:
    path = save(
        make("JumpReluAutoEncoder"), tmp_path / "run", "JumpReluAutoEncoder", submodule_name="resid_post_layer_8"
    )
    assert convert(path, tmp_path / "out").hook == "blocks.8.hook_resid_post"


def test_the_threshold_of_a_short_run_gives_a_warning(tmp_path: Path) -> None:
    made = convert(save(make("BatchTopKSAE"), tmp_path / "run", "BatchTopKSAE", steps=2500), tmp_path / "out")
    assert "running mean over only 1,500 steps" in made.warnings[0]


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "GatedAutoEncoder", "AutoEncoder"])
def test_backups_and_snapshots_are_read(tmp_path: Path, kind: str) -> None:
    module = make(kind)
    if kind == "AutoEncoder":
        with torch.no_grad():
            module.decoder.weight /= module.decoder.weight.norm(dim=0)
    path = save(module, tmp_path / "run", kind, steps=100_000)
    (path / "ae.pt").unlink()
    optimizer = torch.optim.Adam(module.parameters()).state_dict()
    nested = {"step": 7, "ae": module.state_dict(), "optimizer": optimizer, "config": {"k": 5}, "norm_factor": 1.7}
    (path / "checkpoints").mkdir()
    torch.save(nested, path / "checkpoints" / "ae_7.pt")
    module.scale_biases(1.7)
    assert_same(path / "checkpoints" / "ae_7.pt", tmp_path / "out", D_IN, module.encode, module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class is CrossCoder, expected one of AutoEncoder"),
        ({"k": 6}, "k is 5, but .* says 6"),
        ({"dict_class": "GatedAutoEncoder"}, "which such an SAE does not have"),
        ({"lm_name": 3}, "lm_name is 3, expected a string"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = save(make("BatchTopKSAE"), tmp_path / "run", "BatchTopKSAE")
    config = json.loads((path / "config.json").read_text())
    config["trainer"] |= change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("b_dec", None, "lacks the tensor b_dec"),
        ("b_dec", torch.zeros(17), r"b_dec has shape \[17\], expected \[16\]"),
        ("encoder.bias", torch.full((64,), np.nan), "encoder.bias holds NaN or Inf"),
        ("decoder.weight", torch.full((16, 64), np.inf), "decoder.weight holds NaN or Inf"),
        ("decoder.weight", torch.zeros(64, 16), r"decoder.weight has shape \[64, 16\], expected \[16, 64\]"),
        ("threshold", torch.tensor(np.nan), "threshold holds NaN"),
        ("k", torch.tensor(2.5), "k is 2.5, expected a whole number"),
        ("k", torch.tensor(0), "must be"),
        ("extra", torch.zeros(3), "holds extra"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    module = make("BatchTopKSAE")
    path = save(module, tmp_path / "run", "BatchTopKSAE")
    state = module.state_dict() | ({} if value is None else {name: value})
    if value is None:
        del state[name]
    torch.save(state, path / "ae.pt")
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
