"""The figures of the first tokens in vLLM compare with those of the bundle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_runtime.serve.vllm.first_tokens import FirstTokens
from sae_runtime.train.measure.torch_sae import open_sae


def test_figures_are_those_of_the_tokens_without_attention_sinks(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    x = torch.randn(500, 24, generator=torch.Generator().manual_seed(0))
    first = FirstTokens(open_sae(path), "mine")
    first.add(1e3 * x[:1])  # which the fit leaves out, and which would own the variance
    first.add(x)
    told = first.figures()

    sae, wide = open_sae(path), x.double()
    f = sae.features(x)
    spread = (wide - wide.mean(dim=0)).square().sum()
    assert told["tokens"] == 1 + len(x)
    assert told["l0"] == pytest.approx(float(np.mean((f.numpy() > 0).sum(axis=1))))
    assert told["fvu"] == pytest.approx(float((wide - sae.decode(f, x)).square().sum() / spread), rel=1e-4)


def test_figures_follow_the_tokens(copy_of: Callable[..., Path]) -> None:
    path = copy_of("mutual")
    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    first = FirstTokens(open_sae(path), "mine")
    assert first.figures()["fvu"] is None
    for begin in (0, 10):
        first.add(x[begin : begin + 10])
        assert first.figures()["tokens"] == begin + 10
        assert first.figures() is first.figures()
