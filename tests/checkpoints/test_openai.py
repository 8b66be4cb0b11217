"""OpenAI's package is not on PyPI, so `foreign_saes.openai` holds its forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import assert_same
from foreign_saes.openai import forward, state

from sae_runtime.checkpoints import openai
from sae_runtime.checkpoints.convert import convert


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


def test_files_with_the_activation_as_separate_entries_are_read(tmp_path: Path) -> None:
    saved = state(5) | {"activation.k": 5, "activation.postact_fn": "ReLU"}
    torch.save(saved, tmp_path / "autoencoder.pt")
    assert convert(tmp_path / "autoencoder.pt", tmp_path / "out").architecture.k == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "Identity"}, "activation is Identity, expected one of ReLU, TopK"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, "keeps negative features"),
        ({"activation_state_dict": {}}, "does not say k"),
        ({"activation_state_dict": {"k": 65}}, "k must be in"),
        ({"decoder.weight": torch.zeros(64, 16)}, r"decoder.weight has shape \[64, 16\]"),
    ],
)
def test_settings_and_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.save(state(5) | change, tmp_path / "autoencoder.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "autoencoder.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
