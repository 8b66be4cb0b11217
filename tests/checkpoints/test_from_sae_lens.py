import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from foreign import activations, assert_near, assert_same, pre_activations, whole
from foreign_saes.sae_lens import CASES, SIZES, THROUGH, make

from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints import sae_lens
from sae_runtime.checkpoints.convert import convert

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning"),
]
MID_RUN = {"batchtopk": {}, "matryoshka_batchtopk": {"matryoshka_widths": [16, 64]}}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Give a random SAE of SAELens and the folder that its own save_model wrote."""

    def give(kind: str, **settings: Any) -> tuple[Any, Path]:
        module = make(kind, **settings)
        module.save_model(tmp_path / "foreign")
        return module, tmp_path / "foreign"

    return give


Saved = Callable[..., tuple[Any, Path]]


def test_every_architecture_is_tested() -> None:
    assert {architecture for architecture, _, _ in CASES.values()} | set(MID_RUN) == set(sae_lens.ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_computes_what_sae_lens_does(saved: Saved, tmp_path: Path, name: str) -> None:
    architecture, kind, settings = CASES[name]
    module, path = saved(kind, **settings)
    made = assert_same(path, tmp_path / "out", settings["d_in"], module.encode, module.forward)
    assert made.source_format == architecture
    assert (made.model, made.hook) == ("tiny", "blocks.1.hook_resid_post")
    assert made.warnings == ()
    opened = bundle.read(tmp_path / "out").manifest
    assert opened.provenance["format"] == "sae-lens"
    assert opened.provenance["source"]["sha256"] == bundle.record(path / "sae_weights.safetensors").sha256
    assert opened.hook_out == ("out" if "ranscoder" in kind else opened.hook_out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_types_are_rounded_once(saved: Saved, tmp_path: Path, dtype: str) -> None:
    module, path = saved("JumpReLUSAE", **SIZES, dtype=dtype)
    module = module.to(dtype=torch.float32)
    made = assert_same(path, tmp_path / "out", 16, module.encode, module.forward)
    np.testing.assert_array_equal(whole(made, "W_enc"), module.W_enc.detach().numpy())


@pytest.mark.parametrize("name", MID_RUN)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_checkpoint_within_a_run_is_served_as_its_final_save(
    saved: Saved, tmp_path: Path, name: str, rescale: bool
) -> None:
    from sae_lens import SAE

    kind = "BatchTopKTrainingSAE" if name == "batchtopk" else "MatryoshkaBatchTopKTrainingSAE"
    settings = {**SIZES, "k": 2.5, "rescale_acts_by_decoder_norm": rescale, **MID_RUN[name]}
    module, path = saved(kind, **settings)
    module.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    module.save_model(path)
    module.save_inference_model(tmp_path / "final")
    final = SAE.load_from_disk(tmp_path / "final")
    made = assert_same(path, tmp_path / "out", 16, final.encode, final.forward)
    assert (made.allocation and made.allocation.kind, made.allocation and made.allocation.k) == ("mutual", 2.5)
    assert made.manifest().slots == 10
    assert len(made.warnings) == 1 and "running mean" in made.warnings[0]


def test_a_run_without_a_threshold_gives_a_bundle_without_threshold(saved: Saved, tmp_path: Path) -> None:
    module, path = saved("BatchTopKTrainingSAE", **SIZES, k=3, rescale_acts_by_decoder_norm=False)
    made = convert(path, tmp_path / "out")
    assert "threshold" not in made.weights
    assert not bundle.read(tmp_path / "out", calibrated=False).calibrated
    x = activations(7, 16)
    with torch.no_grad():
        hidden = torch.relu((x - module.b_dec) @ module.W_enc + module.b_enc)
    assert_near(pre_activations(made, x), hidden.numpy())


def test_the_input_scale_of_a_run_is_folded_in_as_its_final_save_does(saved: Saved, tmp_path: Path) -> None:
    settings = {**SIZES, "k": 3, "normalize_activations": "expected_average_only_in"}
    module, path = saved("BatchTopKTrainingSAE", **settings, rescale_acts_by_decoder_norm=True)
    module.topk_threshold = torch.tensor(0.7, dtype=torch.double)
    module.save_model(path)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.37, "has_whitening": false}')
    from sae_lens import SAE

    module.fold_activation_norm_scaling_factor(0.37)
    module.save_inference_model(tmp_path / "final")
    final = SAE.load_from_disk(tmp_path / "final")
    made = assert_same(path, tmp_path / "out", 16, final.encode, final.forward)
    assert "input scale 0.37 is folded in" in made.warnings[0]


def test_an_unknown_input_scale_gives_a_warning(saved: Saved, tmp_path: Path) -> None:
    module, path = saved("StandardSAE", **SIZES, normalize_activations="expected_average_only_in")
    made = assert_same(path, tmp_path / "out", 16, module.encode, module.forward)
    assert "does not tell the scale" in made.warnings[0]


def test_old_configurations_are_read_as_sae_lens_reads_them(saved: Saved, tmp_path: Path) -> None:
    from sae_lens import SAE

    _, path = saved("TopKSAE", **SIZES, k=5)
    old = {
        "d_in": 16,
        "d_sae": 64,
        "dtype": "float32",
        "hook_point": "blocks.3.attn.hook_z",
        "model_name": "gpt2-small",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 7},
        "normalize_activations": False,
        "sae_lens_training_version": "3.1.0",
    }
    (path / "cfg.json").write_text(json.dumps(old))
    module = SAE.load_from_disk(path)
    module.turn_off_forward_pass_hook_z_reshaping()
    made = assert_same(path, tmp_path / "out", 16, module.encode, module.forward)
    assert (made.architecture.k, made.model, made.hook) == (7, "gpt2-small", "blocks.3.attn.hook_z")
    assert "heads" in made.warnings[0]
    del old["activation_fn_str"]
    (path / "cfg.json").write_text(json.dumps(old))
    assert convert(path, tmp_path / "standard").source_format == "standard"


def test_log_thresholds_are_read(saved: Saved, tmp_path: Path) -> None:
    _, path = saved("JumpReLUSAE", **SIZES)
    state = safetensors.torch.load_file(path / "sae_weights.safetensors")
    state["log_threshold"] = state.pop("threshold")
    safetensors.torch.save_file(state, path / "sae_weights.safetensors")
    made = convert(path, tmp_path / "out")
    np.testing.assert_allclose(whole(made, "threshold"), np.exp(state["log_threshold"].numpy()), rtol=1e-6)


def test_thresholds_of_a_doubtful_unit_give_a_warning(saved: Saved, tmp_path: Path) -> None:
    _, path = saved("JumpReLUSAE", **SIZES)
    cfg = json.loads((path / "cfg.json").read_text())
    cfg["metadata"] |= {"sae_lens_version": "6.40.0", "training_architecture": "batchtopk"}
    (path / "cfg.json").write_text(json.dumps(cfg))
    made = convert(path, tmp_path / "out")
    assert "SAELens#763" in made.warnings[0]
    assert bundle.read(tmp_path / "out").manifest.provenance["warnings"] == list(made.warnings)
    (path / "runner_cfg.json").write_text('{"sae": {"normalize_activations": "none"}}')
    assert sae_lens.read(path).warnings == ()
    (path / "runner_cfg.json").unlink()
    cfg["metadata"]["sae_lens_version"] = "6.54.12"
    (path / "cfg.json").write_text(json.dumps(cfg))
    assert sae_lens.read(path).warnings == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "abstopk"}, "keeps negative features"),
        ({"architecture": "matching_pursuit"}, "depend on each other"),
        ({"architecture": "temporal"}, "reads other tokens"),
        ({"architecture": "crystal"}, "architecture is crystal, expected one of standard"),
        ({"architecture": None}, "does not say architecture"),
        ({"normalize_activations": "covariance_whitening"}, "convert the final save"),
        ({"normalize_activations": "rms"}, "normalize_activations is rms"),
        ({"reshape_activations": "foo"}, "reshape_activations is foo, expected one of none, hook_z"),
        ({"k": 10**30}, "expected a whole number"),
        (
            {"metadata": {"sae_lens_version": "6." + "9" * 5000, "hook_name": "a\nb"}},
            "hook_name is .*, expected a string",
        ),
        ({"d_in": 17}, r"W_enc has shape \[16, 64\], expected \[17, 64\]"),
        ({"d_in": "16"}, "d_in is '16', expected a whole number"),
        ({"d_in": True}, "d_in is True, expected a whole number"),
        ({"k": 65}, r"foreign cannot be served \(k must be in .*; get a sound copy"),
        ({"k": None}, "does not say k"),
        ({"k": 2.5}, "k is 2.5, expected a whole number"),
        ({"apply_b_dec_to_input": "no"}, "expected true or false"),
        ({"architecture": "gated"}, "lacks the tensor b_gate"),
        ({"architecture": "jumprelu"}, "lacks the tensor threshold"),
        ({"architecture": "transcoder", "d_out": 16}, "cannot have apply_b_dec_to_input"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(
    saved: Saved, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _, path = saved("TopKSAE", **SIZES, k=5)
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transcoders_with_norms_and_decoder_rows_of_zero_are_refused(saved: Saved, tmp_path: Path) -> None:
    _, path = saved("Transcoder", **THROUGH, normalize_activations="layer_norm")
    with pytest.raises(ValueError, match="nothing that undoes it"):
        convert(path, tmp_path / "out")
    module, path = saved("TopKSAE", **SIZES, k=5, rescale_acts_by_decoder_norm=True)
    with torch.no_grad():
        module.W_dec[9] = 0
    module.save_model(path)
    with pytest.raises(ValueError, match="W_dec is 0 at feature 9"):
        convert(path, tmp_path / "out")


def test_other_tensors_are_refused(saved: Saved, tmp_path: Path) -> None:
    _, path = saved("StandardSAE", **SIZES)
    state = safetensors.torch.load_file(path / "sae_weights.safetensors")
    safetensors.torch.save_file({**state, "scaling_factor": torch.ones(64)}, path / "sae_weights.safetensors")
    assert sae_lens.read(path).source_format == "standard"
    safetensors.torch.save_file({**state, "scaling_factor": torch.full((64,), 2.0)}, path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="scaling_factor is not 1"):
        sae_lens.read(path)
    safetensors.torch.save_file({**state, "mystery": torch.ones(64)}, path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="holds mystery, which such an SAE does not have"):
        sae_lens.read(path)
