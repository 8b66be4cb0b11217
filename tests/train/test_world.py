import os
import socket
import subprocess
import sys
from typing import Any

import processes
import pytest
import torch
from processes import ALLOCATIONS, BATCH, D_SAE, fitted, latents, selections
from torch import Tensor

from sae_runtime.train.world import World, started_by_torchrun

SIZE = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes have written."""
    folder = tmp_path_factory.mktemp("world")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(SIZE):
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "LOCAL_RANK": str(rank)}
        command = [sys.executable, processes.__file__, str(folder)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]


@pytest.mark.parametrize("limits", ["total", "nothing", "everything", "caps", "all caps", "nominated"])
def test_processes_select_what_one_selects(together: list[dict[str, Any]], limits: str) -> None:
    alone = selections(latents(), World())[limits]
    parts = [result["selections"][limits] + rank * BATCH // SIZE * D_SAE for rank, result in enumerate(together)]
    assert torch.equal(torch.cat(parts), alone)
    if limits == "total":
        assert min(len(part) for part in parts) < len(alone) // 2 - 50, "the shares were to differ"


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_processes_fit_what_one_fits(together: list[dict[str, Any]], allocation: str) -> None:
    alone = fitted(allocation, World())
    first, second = (result[allocation] for result in together)
    assert torch.equal(first["fired at the first step"], alone["fired at the first step"])
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(first[name], second[name]), "the processes have one model"
        assert distance(first[name], alone[name]) < 1e-6
    assert torch.equal(first["density"], second["density"])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not started_by_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_by_torchrun()
