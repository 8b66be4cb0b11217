"""Merged answers of bundles have the bits of `SAE.encode` alone, over sizes of SAEs and requests and all graphs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, KINDS, make_x
from numpy.typing import NDArray

from sae_runtime import SAE, load
from sae_runtime.bundle.graphs import ENCODERS
from sae_runtime.core.edits import Edit
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.scheduler import Scheduler


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_sae", [150, 1_536, 6_144, 24_576])
def test_requests_of_every_size(
    bundle_of: Callable[..., Path], kind: str, d_sae: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle_of(kind, d_sae)
    graphs = [graph for graph in ENCODERS if graph in load(path).manifest.graphs]
    assert d_sae < 24_576 or len(graphs) > 1
    for graph in graphs:
        _merge_all_sizes(load(path, graph=graph), monkeypatch)


def _merge_all_sizes(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane([Loaded("one", 1, sae=sae)], limits=Limits(seconds=3600))
    wake = Scheduler.wake
    monkeypatch.setattr(Scheduler, "wake", lambda self: None)  # all requests wait before the first is computed
    sizes = np.random.default_rng(sae.d_sae).permutation(np.arange(1, 301))
    x = make_x(int(sizes.sum()), seed=5)
    parts = np.split(x, np.cumsum(sizes)[:-1])
    futures = [plane.submit("one.encode", {"x": part}) for part in parts]
    monkeypatch.setattr(Scheduler, "wake", wake)
    plane._scheduler.wake()
    for part, future in zip(parts, futures, strict=True):
        indices, values = sae.encode_slots(part)
        answer = future.result(600)
        assert answer["indices"].tobytes() == indices.tobytes(), len(part)
        assert answer["values"].tobytes() == values.tobytes(), len(part)
    plane.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_sae", [150, 1_536, 24_576])
def test_edits_of_every_number(bundle_of: Callable[..., Path], kind: str, d_sae: int) -> None:
    sae, rng = load(bundle_of(kind, d_sae)), np.random.default_rng(d_sae)
    plane = Plane([Loaded("one", 1, sae=sae)], limits=Limits(edits=40, seconds=3600))
    asks = []
    for tokens in (1, 1, 1, 2, 5, 40):
        for count in range(41):
            x = rng.normal(0, 1.2, (tokens, D_IN)).astype(np.float32)
            asks.append((x, [Edit.set(int(f), float(rng.uniform(1, 9))) for f in rng.permutation(d_sae)[:count]]))
    order = rng.permutation(len(asks)).tolist()
    futures = []
    for number in order:
        x, edits = asks[number]
        given: dict[str, NDArray[Any]] = {
            "features": np.array([[edit.feature for edit in edits]], np.int64).reshape(1, -1),
            "scale": np.zeros((1, len(edits)), np.float32),
            "shift": np.array([[edit.shift for edit in edits]], np.float32).reshape(1, -1),
        }
        futures.append(plane.submit("one.steer", {"x": x, **given}))
    for number, future in zip(order, futures, strict=True):
        x, edits = asks[number]
        assert future.result(600)["y"].tobytes() == sae.steer(x, edits).tobytes(), (len(x), len(edits))
    plane.close()


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_concurrent_answers(bundle_of: Callable[..., Path], kind: str) -> None:
    sae, rng = load(bundle_of(kind)), np.random.default_rng(0)
    plane = Plane([Loaded("one", 1, sae=sae)], limits=Limits(waiting=4000, seconds=3600))
    parts = [rng.normal(0, 1.2, (int(n), D_IN)).astype(np.float32) for n in rng.integers(1, 6, math.ceil(10_000 / 3))]
    futures = [plane.submit("one.encode", {"x": part}) for part in parts]
    for part, future in zip(parts, futures, strict=True):
        indices, values = sae.encode_slots(part)
        answer = future.result(600)
        assert (answer["indices"].tobytes(), answer["values"].tobytes()) == (indices.tobytes(), values.tobytes())
    plane.close()
