"""Settings of SAELens that say what the activations are: folded, recorded, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refused, run
from foreign import activations, assert_same
from foreign_saes.sae_lens import CASES, SIZES, make
from torch import Tensor

from sae_runtime import Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export

pytestmark = pytest.mark.filterwarnings("ignore")

CENTRED = {"center_writing_weights": True, "fold_ln": True, "center_unembed": True}
STREAM = {"model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_pre"}
FOLDED = [name for name in CASES if "length" not in name or "decoder" in name]

Saved = Callable[..., tuple[Any, Path]]


def rewrite(path: Path, *, flat: bool = False, **facts: Any) -> Path:
    """Put facts in a configuration: into its metadata, or beside its other settings as before SAELens 6."""
    cfg = json.loads((path / "cfg.json").read_text())
    if flat:
        cfg.pop("metadata", None)
    cfg.update(facts) if flat else cfg["metadata"].update(facts)
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Give a random SAE of SAELens, and its folder with facts in the configuration."""

    def give(kind: str, settings: dict[str, Any], **facts: Any) -> tuple[Any, Path]:
        module = make(kind, **settings)
        module.save_model(tmp_path / "foreign")
        return module, rewrite(tmp_path / "foreign", **facts)

    return give


def mean(x: Tensor) -> Tensor:
    return x.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("name", FOLDED)
def test_an_sae_of_a_centred_model_reads_the_models_own_activations(saved: Saved, tmp_path: Path, name: str) -> None:
    _, kind, settings = CASES[name]
    facts = {**STREAM, "hook_name_out": "blocks.1.hook_mlp_out", "model_from_pretrained_kwargs": CENTRED}
    module, path = saved(kind, settings, **facts)
    through = "ranscoder" in kind

    def reconstruct(x: Tensor) -> Any:
        return module(x - mean(x)) + (0 if through else mean(x))

    made = assert_same(path, tmp_path / "out", settings["d_in"], lambda x: module.encode(x - mean(x)), reconstruct)
    assert ("W_skip" in made.weights) == (name != "layer norm" and ("skip" in name or not through))
    warned = " ".join(made.warnings)
    assert ("W_skip adds it to x_hat" in warned) == (name != "layer norm" and not through)
    assert ("less the mean over d_out" in warned) == through
    assert made.provenance["fitted_on"] == {"model_from_pretrained_kwargs": CENTRED}


def test_a_transcoder_to_an_activation_that_is_not_centred_needs_the_fold_alone(saved: Saved, tmp_path: Path) -> None:
    settings = CASES["skip transcoder"][2]
    facts = {"hook_name_out": "blocks.1.mlp.hook_post", "model_from_pretrained_kwargs": CENTRED}
    _, path = saved("SkipTranscoder", settings, **{**STREAM, **facts})
    (warning,) = convert(path, tmp_path / "out").warnings
    assert warning.endswith("the mean is folded into W_enc.")


def test_an_input_scale_and_centring_are_folded_together(saved: Saved, tmp_path: Path) -> None:
    module, path = saved("StandardSAE", SIZES, **STREAM, model_from_pretrained_kwargs=CENTRED)
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**cfg, "normalize_activations": "expected_average_only_in"}))
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')

    def encode(x: Tensor) -> Any:
        return module.encode((x - mean(x)) / 4)

    assert_same(path, tmp_path / "out", 16, encode, lambda x: 4 * module.decode(encode(x)) + mean(x))


def test_steering_a_folded_sae_changes_x_by_the_decoders_rows(saved: Saved, tmp_path: Path) -> None:
    module, path = saved("StandardSAE", SIZES, **STREAM, model_from_pretrained_kwargs=CENTRED)
    convert(path, tmp_path / "out")
    export(tmp_path / "out")
    x = activations(6, 16)
    feature = int(module.encode(x - mean(x)).sum(dim=0).argmax())
    with torch.no_grad():
        f = module.encode(x - mean(x))[:, feature, None]
        expected = x - f * module.W_dec[feature]
    steered = load(tmp_path / "out").steer(x.numpy()[None], [Edit.ablate(feature)])[0]
    np.testing.assert_allclose(steered, expected.numpy(), atol=1e-5)


def test_one_length_of_centred_activations_is_refused(saved: Saved, tmp_path: Path) -> None:
    settings = {**SIZES, "normalize_activations": "constant_norm_rescale"}
    _, path = saved("JumpReLUSAE", settings, **STREAM, model_from_pretrained_kwargs=CENTRED)
    assert "the length changes with the mean" in refused("convert", path, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("hook", "model", "kwargs"),
    [
        ("blocks.1.attn.hook_z", "gpt2", CENTRED),
        ("blocks.1.mlp.hook_post", "pythia-70m", CENTRED),
        ("blocks.1.hook_resid_pre", "google/gemma-2-2b", CENTRED),
        ("blocks.1.hook_resid_pre", "gpt2", {"center_writing_weights": False, "dtype": "float16"}),
        ("blocks.1.hook_resid_pre", "gpt2", {"fold_ln": True, "fold_value_biases": True}),
    ],
)
def test_processing_that_leaves_the_activation_alone_changes_nothing(
    saved: Saved, tmp_path: Path, hook: str, model: str, kwargs: dict[str, Any]
) -> None:
    facts = {"model_name": model, "hook_name": hook, "model_from_pretrained_kwargs": kwargs}
    module, path = saved("StandardSAE", SIZES, **facts)
    made = assert_same(path, tmp_path / "out", 16, module.encode, module.forward)
    assert made.warnings == () and made.provenance["fitted_on"] == {"model_from_pretrained_kwargs": kwargs}


def test_arguments_of_other_classes_of_models_are_no_processing(saved: Saved, tmp_path: Path) -> None:
    facts = {"hook_name": "model.layers.1", "model_class_name": "AutoModelForCausalLM"}
    module, path = saved("StandardSAE", SIZES, **facts, model_from_pretrained_kwargs={"center_writing_weights": True})
    assert_same(path, tmp_path / "out", 16, module.encode, module.forward)


def test_published_repositories_get_what_sae_lens_adds_to_them(tmp_path: Path) -> None:
    module = make("StandardSAE", **SIZES)
    for folder in ("models--jbloom--GPT2-Small-SAEs-Reformatted/snapshots/0a", "GPT2-Small-SAEs-Reformatted"):
        path = tmp_path / folder / "blocks.8.hook_resid_pre"
        module.save_model(path)
        rewrite(path, flat=True, model_name="gpt2-small", hook_point="blocks.8.hook_resid_pre")
        out = tmp_path / f"{folder[:3]}-out"
        assert_same(path, out, 16, lambda x: module.encode(x - mean(x)), lambda x: module(x - mean(x)) + mean(x))


def test_an_old_configuration_that_does_not_tell_is_warned_of(tmp_path: Path) -> None:
    module = make("StandardSAE", **SIZES)
    module.save_model(tmp_path / "old")
    facts = {"model_name": "gpt2", "hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 3}
    made = convert(rewrite(tmp_path / "old", flat=True, **facts), tmp_path / "out")
    assert made.hook == "blocks.3.hook_resid_pre"
    assert "does not say whether TransformerLens centred the model" in made.warnings[0]
    told = rewrite(tmp_path / "old", flat=True, model_from_pretrained_kwargs={"center_writing_weights": False})
    assert convert(told, tmp_path / "told").warnings == ()


@pytest.mark.parametrize(
    ("facts", "left_out", "warning"),
    [
        ({"seqpos_slice": [1, None]}, LeftOut(first_positions=1), None),
        ({"seqpos_slice": [None]}, None, None),
        ({"seqpos_slice": [None, None, None]}, None, None),
        ({"seqpos_slice": [5, -5]}, LeftOut(first_positions=5), r"positions \[5:-5:\] of each context"),
        ({"seqpos_slice": [8]}, None, r"positions \[:8:\]"),
        ({"seqpos_slice": [-8, None, 2]}, None, r"positions \[-8::2\]"),
        ({"exclude_special_tokens": [0, 7]}, LeftOut(token_ids=(0, 7)), None),
        ({"exclude_special_tokens": True}, None, "without the tokenizer's special tokens"),
        ({"exclude_special_tokens": False, "prepend_bos": False, "context_size": 64}, None, None),
        ({"hook_head_index": 3}, None, "attention head 3 alone"),
        ({"model_from_pretrained_kwargs": {"checkpoint_value": 4000}}, None, "snapshot of the model"),
    ],
)
def test_rows_that_training_left_out_are_named(
    saved: Saved, tmp_path: Path, facts: dict[str, Any], left_out: LeftOut | None, warning: str | None
) -> None:
    _, path = saved("StandardSAE", SIZES, **facts)
    made = convert(path, tmp_path / "out")
    manifest = bundle.read(tmp_path / "out").manifest
    assert manifest.left_out == left_out
    assert manifest.provenance["fitted_on"] == facts
    assert len(made.warnings) == (warning is not None)
    if warning is not None:
        with pytest.raises(AssertionError, match=warning):
            raise AssertionError(made.warnings[0])


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"seqpos_slice": "1:"}, "expected one to three whole numbers"),
        ({"seqpos_slice": [1, 2, 3, 4]}, "expected one to three whole numbers"),
        ({"seqpos_slice": [1.5]}, "expected one to three whole numbers"),
        ({"exclude_special_tokens": [-1]}, "expected ids of tokens"),
        ({"exclude_special_tokens": "all"}, "expected true or false"),
        ({"model_from_pretrained_kwargs": [1]}, "expected an object"),
        ({"model_from_pretrained_kwargs": {"fold_ln": "yes"}}, "expected true or false"),
        ({"hook_head_index": "first"}, "expected a whole number"),
        ({**STREAM, "hook_name": "h.1", "model_from_pretrained_kwargs": CENTRED}, "is not known"),
    ],
)
def test_settings_of_another_type_are_refused(saved: Saved, tmp_path: Path, facts: dict[str, Any], reason: str) -> None:
    _, path = saved("StandardSAE", SIZES, **facts)
    assert reason in refused("convert", path, "-o", tmp_path / "out")


def test_convert_and_inspect_show_what_was_recorded(saved: Saved, tmp_path: Path) -> None:
    facts = {"prepend_bos": True, "context_size": 128, "dataset_path": "monology/pile", "seqpos_slice": [1, None]}
    _, path = saved("StandardSAE", SIZES, **facts, model_from_pretrained_kwargs={"dtype": "bfloat16"})
    line = (
        'fitted on     model_from_pretrained_kwargs {"dtype": "bfloat16"}, prepend_bos true, context_size 128, '
        'seqpos_slice [1, null], dataset_path "monology/pile"'
    )
    assert " ".join(line.split()) in " ".join(run("convert", path, "-o", tmp_path / "out").stdout.split())
    assert " ".join(line.split()) in " ".join(run("inspect", tmp_path / "out").stdout.split())
