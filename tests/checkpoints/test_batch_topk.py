"""BatchTopK is not a package, so `foreign_saes.batch_topk` holds the forward pass of its `sae.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import activations, assert_near, assert_same, pre_activations
from foreign_saes.batch_topk import forward, save

from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints import batch_topk
from sae_runtime.checkpoints.convert import convert


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("kind", [k for k in batch_topk.ARCHITECTURES if k != "batchtopk"])
def test_a_bundle_computes_the_published_forward(tmp_path: Path, kind: str, unit: bool) -> None:
    state, cfg = save(tmp_path / "run", sae_type=kind, input_unit_norm=unit)
    made = assert_same(
        tmp_path / "run",
        tmp_path / "out",
        16,
        lambda x: forward(state, cfg, x)[0],
        lambda x: forward(state, cfg, x)[1],
    )
    assert (made.source_format, made.model, made.hook) == (kind, "tiny", "blocks.1")


@pytest.mark.parametrize("kind", ["vanilla", "topk", "jumprelu"])
def test_a_configuration_may_say_that_the_model_was_centred(tmp_path: Path, kind: str) -> None:
    stream = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"}
    save(tmp_path / "silent", sae_type=kind, **stream)
    assert (
        "does not say whether TransformerLens centred the model"
        in convert(tmp_path / "silent", tmp_path / "s").warnings[0]
    )
    kwargs = {"center_writing_weights": True}
    state, cfg = save(tmp_path / "run", sae_type=kind, **stream, model_from_pretrained_kwargs=kwargs)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=-1, keepdim=True)

    assert_same(
        tmp_path / "run",
        tmp_path / "out",
        16,
        lambda x: forward(state, cfg, x - mean(x))[0],
        lambda x: forward(state, cfg, x - mean(x))[1] + mean(x),
    )


def test_a_batch_topk_checkpoint_gives_a_bundle_without_threshold(tmp_path: Path) -> None:
    state, _ = save(tmp_path / "run", sae_type="batchtopk")
    made = convert(tmp_path / "run", tmp_path / "out")
    assert not bundle.read(tmp_path / "out", calibrated=False).calibrated
    assert (made.allocation and made.allocation.kind, made.manifest().slots) == ("mutual", 20)
    assert made.warnings == ("It knows only its batch rule; run sae-runtime calibrate.",)
    x = activations(300, 16)
    assert_near(pre_activations(made, x), torch.relu((x - state["b_dec"]) @ state["W_enc"]).numpy())


def test_settings_of_the_first_versions_are_used_or_refused(tmp_path: Path) -> None:
    state, _ = save(tmp_path / "biased", sae_type="batchtopk", use_encoder_bias=True, tied_weights=True)
    made = convert(tmp_path / "biased", tmp_path / "out")
    x = activations(7, 16)
    assert_near(pre_activations(made, x), torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).numpy())
    written = bundle.read(tmp_path / "out", calibrated=False)
    assert (written.tensor("W_dec") == state["W_enc"].T.numpy()).all()
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "gelu": ({"activation": "gelu"}, "activation gelu cannot be served"),
        "early": ({"use_encoder_bias": False, "input_unit_norm": True}, "did not undo input_unit_norm"),
        "odd": ({"sae_type": "quantile"}, "sae_type is quantile"),
    }
    for name, (cfg, message) in cases.items():
        save(tmp_path / name, **{"sae_type": "topk", **cfg})
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / name, tmp_path / "none")
    assert not (tmp_path / "none").exists()
