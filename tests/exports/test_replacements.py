"""What stands in for functions of transformers while a model is traced computes what they compute."""

import importlib
from typing import Any

import pytest
import torch

from sae_runtime.exports.model.rotary import rotate
from sae_runtime.exports.model.scan import chunk_scan, selective_scan


def transformers_own(model: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)


def randoms(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("model", ["mamba", "falcon_mamba", "jamba", "zamba"])
@pytest.mark.parametrize("softplus", [True, False])
def test_a_selective_scan_is_transformers_own(model: str, softplus: bool) -> None:
    x, dt, a, b, c, d, z, bias = randoms((2, 6, 9), (2, 6, 9), (6, 4), (2, 4, 9), (2, 4, 9), (6,), (2, 6, 9), (6,))
    given: dict[str, Any] = {"D": d, "z": z, "delta_bias": bias, "delta_softplus": softplus}
    dt = dt.abs() if not softplus else dt
    own = transformers_own(model, "mamba_selective_scan")(x, dt, -a.exp(), b, c, **given)
    torch.testing.assert_close(selective_scan(x, dt, -a.exp(), b, c, **given), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["mamba2", "bamba", "falcon_h1", "zamba2"])
@pytest.mark.parametrize("time", [1, 8, 19])
def test_a_scan_by_chunks_is_transformers_own(model: str, time: int) -> None:
    x, dt, a, b, c, d, bias = randoms((2, time, 4, 3), (2, time, 4), (4,), *[(2, time, 2, 5)] * 2, (4,), (4,))
    given: dict[str, Any] = {"D": d, "dt_bias": bias, "dt_softplus": True, "dt_limit": (0.1, 1.5), "chunk_size": 8}
    own = transformers_own(model, "mamba2_chunk_scan")(x, dt, -a.exp(), b, c, **given)
    torch.testing.assert_close(chunk_scan(x, dt, -a.exp(), b, c, **given), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "heads"), [("deepseek_v2", 1), ("llama4", 2)])
def test_rotary_positions_are_transformers_own(model: str, heads: int) -> None:
    shape = [2, 7, 6]
    shape.insert(heads, 4)
    queries, keys, angles = randoms(tuple(shape), tuple(shape), (2, 7, 3))
    turns = torch.polar(torch.full_like(angles, 1.2), angles)
    own = transformers_own(model, "apply_rotary_emb")(queries, keys, turns)
    for got, expected in zip(rotate(heads)(queries, keys, turns), own, strict=True):
        torch.testing.assert_close(got, expected)
