"""OpenAI's package is not on PyPI: its forward is written out here from `sparse_autoencoder/model.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import assert_same
from torch import Tensor

from sae_runtime.checkpoints import openai
from sae_runtime.checkpoints.convert import convert


def state(k: int | None, *, tied: bool = False) -> dict[str, Any]:
    """What its state_dict() gives."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    out: dict[str, Any] = {
        "pre_bias": random(16),
        "latent_bias": random(64),
        "stats_last_nonzero": torch.zeros(64, dtype=torch.long),
        "latents_activation_frequency": torch.ones(64),
        "latents_mean_square": torch.zeros(64),
        "encoder.weight": random(64, 16),
    }
    if tied:
        out["decoder.linear.weight"] = out["encoder.weight"]
    else:
        out["decoder.weight"] = random(16, 64)
    if k is None:
        return out | {"activation": "ReLU", "activation_state_dict": {}}
    return out | {"activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": "ReLU"}}


def forward(saved: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction."""
    mean, size = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    if saved["activation"] == "TopK":  # which is how from_state_dict knows that it normalises
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        size = x.std(dim=-1, keepdim=True)
        x = x / (size + 1e-5)
    before = torch.nn.functional.linear(x - saved["pre_bias"], saved["encoder.weight"], saved["latent_bias"])
    latents = torch.relu(before)
    if saved["activation"] == "TopK":
        top = torch.topk(before, saved["activation_state_dict"]["k"], dim=-1)
        latents = torch.zeros_like(before).scatter_(-1, top.indices, torch.relu(top.values))
    decoder = saved["decoder.weight"] if "decoder.weight" in saved else saved["encoder.weight"].T
    y = torch.nn.functional.linear(latents, decoder) + saved["pre_bias"]
    return latents, y * size + mean


@pytest.mark.parametrize(("k", "tied"), [(None, False), (5, False), (60, False), (5, True)])
def test_a_bundle_computes_the_published_forward(tmp_path: Path, k: int | None, tied: bool) -> None:
    saved = state(k, tied=tied)
    torch.save(saved, tmp_path / "autoencoder.pt")
    made = assert_same(
        tmp_path / "autoencoder.pt",
        tmp_path / "out",
        16,
        lambda x: forward(saved, x)[0],
        lambda x: forward(saved, x)[1],
    )
    assert made.source_format == ("ReLU" if k is None else "TopK")
    assert made.source_format in openai.ARCHITECTURES


def test_files_that_a_later_torch_saved_again_are_read(tmp_path: Path) -> None:
    saved = state(5) | {"activation.k": 5, "activation.postact_fn": "ReLU"}
    torch.save(saved, tmp_path / "autoencoder.pt")
    assert convert(tmp_path / "autoencoder.pt", tmp_path / "out").encoder.k == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "Identity"}, "activation is Identity, expected one of ReLU, TopK"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, "keeps negative features"),
        ({"activation_state_dict": {}}, "does not say k"),
        ({"activation_state_dict": {"k": 65}}, "k must be in"),
        ({"decoder.weight": torch.zeros(64, 16)}, r"decoder.weight has shape \[64, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    torch.save(state(5) | change, tmp_path / "autoencoder.pt")
    with pytest.raises(ValueError, match=said):
        convert(tmp_path / "autoencoder.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
