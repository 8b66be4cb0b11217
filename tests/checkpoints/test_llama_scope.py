"""Files as published, compared with the loaders of SAELens, or with the library's forward pass written in torch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import activations, assert_near, assert_same, pre_activations
from foreign_saes.llama_scope import AVERAGE, HOOK, NORM, sae_lens_sae, save_first, save_second, weights
from torch import Tensor

from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints import llama_scope
from sae_runtime.checkpoints.convert import convert

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning")


def test_llama_scope_is_read_as_sae_lens_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_first(tmp_path / "L3R-8x", weights(unit=True))
    theirs = sae_lens_sae(monkeypatch, tmp_path / "L3R-8x", "llama_scope_sae_huggingface_loader")
    made = assert_same(tmp_path / "L3R-8x", tmp_path / "out", 16, theirs.encode, theirs.forward)
    assert (made.source_format, made.hook, made.warnings) == ("jumprelu", HOOK, ())


def test_llama_scope_r1_is_read_as_sae_lens_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = weights(unit=False)
    state["log_jumprelu_threshold"] = torch.linspace(-2, 0.5, 64)
    state[f"{NORM}.{HOOK}"] = torch.tensor(AVERAGE)
    save_second(tmp_path / "L3R", state, sparsity_include_decoder_norm=False)
    theirs = sae_lens_sae(monkeypatch, tmp_path / "L3R", "llama_scope_r1_distill_sae_huggingface_loader")
    assert_same(tmp_path / "L3R", tmp_path / "out", 16, theirs.encode, theirs.forward)


def forward(state: dict[str, Tensor], cfg: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Llamascopium's normalize_activations, encode, decode and denormalize_activations."""
    sizes = {
        "dataset-wise": (math.sqrt(16) / state.get(f"{NORM}.{HOOK}", torch.ones(())) * torch.ones(len(x), 1)),
        "token-wise": math.sqrt(16) / x.norm(dim=-1, keepdim=True),
        "inference": torch.ones(len(x), 1),
    }
    size = sizes[cfg["norm_activation"]]
    lengths = state["W_D"].norm(dim=1) if cfg["sparsity_include_decoder_norm"] else torch.ones(64)
    hidden = ((x * size) @ state["W_E"] + state["b_E"]) * lengths
    if cfg["act_fn"] == "relu":
        kept = torch.relu(hidden)
    elif cfg["act_fn"] == "jumprelu":
        kept = hidden * (hidden > state["activation_function.log_jumprelu_threshold"].exp())
    else:
        top = torch.topk(torch.relu(hidden), cfg["top_k"], dim=-1)
        kept = torch.zeros_like(hidden).scatter(1, top.indices, top.values)
    acts = kept / lengths
    return acts, (acts @ state["W_D"] + state["b_D"]) / size


@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_a_bundle_computes_llamascopiums_forward(tmp_path: Path, kind: str, norm: str) -> None:
    old = weights(unit=False)
    state = {"W_E": old["encoder.weight"].T, "b_E": old["encoder.bias"]}
    state |= {"W_D": old["decoder.weight"].T, "b_D": old["decoder.bias"]}
    if kind == "jumprelu":
        state["activation_function.log_jumprelu_threshold"] = torch.linspace(-2, 0.5, 64)
    if norm == "dataset-wise":
        state[f"{NORM}.{HOOK}"] = torch.tensor(AVERAGE)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    cfg = save_second(tmp_path / "run", state, act_fn=kind, norm_activation=norm, top_k=5)
    # With top-k, the bundle's features are multiplied by the decoder lengths, by which they are selected.
    unit = state["W_D"].norm(dim=1) if kind == "topk" else torch.ones(64)
    made = assert_same(
        tmp_path / "run",
        tmp_path / "out",
        16,
        lambda x: forward(state, cfg, x)[0] * unit,
        lambda x: forward(state, cfg, x)[1],
    )
    assert made.source_format == kind
    assert bool(made.warnings) == (kind == "topk")


def test_batchtopk_gives_a_bundle_without_threshold(tmp_path: Path) -> None:
    state = weights(unit=True)
    save_first(tmp_path / "run", state, act_fn="batchtopk")
    made = convert(tmp_path / "run", tmp_path / "out")
    assert not bundle.read(tmp_path / "out", calibrated=False).calibrated
    assert {"relu", "jumprelu", "topk", made.source_format} == set(llama_scope.ARCHITECTURES)
    x = activations(7, 16)
    scale = math.sqrt(16) / AVERAGE
    assert_near(
        pre_activations(made, x), torch.relu(x * scale @ state["encoder.weight"].T + state["encoder.bias"]).numpy()
    )


def test_a_decoder_bias_is_subtracted_from_scaled_activations(tmp_path: Path) -> None:
    state = weights(unit=True)
    for place, out in (("SAE", HOOK), ("transcoder", "blocks.4.hook_mlp_out")):
        norms = {"in": AVERAGE, "out": 1.9}
        cfg = {"act_fn": "relu", "apply_decoder_bias_to_pre_encoder": True, "hook_point_out": out, NORM: norms}
        save_first(tmp_path / place, state, **cfg)

        def encode(x: Tensor) -> Tensor:
            before = x * (math.sqrt(16) / AVERAGE) - state["decoder.bias"]
            return torch.relu(before @ state["encoder.weight"].T + state["encoder.bias"])

        def reconstruct(x: Tensor) -> Tensor:
            return (encode(x) @ state["decoder.weight"].T + state["decoder.bias"]) / (math.sqrt(16) / 1.9)

        made = assert_same(tmp_path / place, tmp_path / f"{place}-out", 16, encode, reconstruct)
        assert made.architecture.d_out == (None if place == "SAE" else 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae_type": "clt"}, "sae_type is clt; crosscoders"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"act_fn": None}, "does not say act_fn"),
        ({"act_fn": "layertopk"}, "act_fn is layertopk, expected one of relu"),
        ({"norm_activation": "batch-wise"}, "depend on each other"),
        ({"norm_activation": "token-wise", "hook_point_out": "elsewhere"}, "does not see"),
        ({NORM: {"in": 0.0, "out": 1.0}}, "expected a positive number"),
        ({NORM: {}}, f"lacks the tensor {NORM}.{HOOK}"),
        ({"jump_relu_threshold": None}, "does not say jump_relu_threshold"),
        ({"d_model": 17}, r"encoder.weight has shape \[64, 16\], expected \[any, 17\]"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_first(tmp_path / "run", weights(unit=True), **change)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
