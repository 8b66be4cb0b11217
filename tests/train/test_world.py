import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from processes import ALLOCATIONS, BATCH, D_SAE, fitted, latents, selections
from torch import Tensor

from sae_runtime import bundle
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.world import World

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


def test_torchrun_fits_the_bundle_that_one_process_fits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.random((1500, 8)) < 0.3) @ rng.standard_normal((8, 12)))
    settings = "train --activations x.npy --allocation feature --k 3 --d-sae 40 --tokens 5120 --batch 128 --device cpu"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*torchrun, str(Path(sys.executable).with_name("sae-runtime")), *settings.split()]
    command += ["-o", "together", "--metrics", "m.jsonl", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == "together", "one of the processes speaks"
    config = TrainConfig(allocation="feature", k=3, d_sae=40, tokens=5120, batch=128, device="cpu")
    fit(tmp_path / "x.npy", tmp_path / "alone", config)
    alone, together = (bundle.read(tmp_path / name) for name in ("alone", "together"))
    for tensor in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        expected, found = (torch.tensor(one.tensor(tensor)) for one in (alone, together))
        assert distance(found, expected) < 1e-2  # the exact comparison is above: here threads differ too
    assert together.manifest.measured["l0"] == pytest.approx(alone.manifest.measured["l0"], rel=1e-2)
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "alone", "together", "m.jsonl"}


def test_processes_share_a_batch_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = World()
    two.size = 2
    together = nullcontext((two, torch.device("cpu")))
    monkeypatch.setattr(sys.modules["sae_runtime.train.fit"], "joined", lambda device: together)
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 processes that share it, got 99"):
        fit(np.ones((500, 6)), tmp_path / "sae", TrainConfig(k=2, d_sae=16, tokens=990, batch=99))
