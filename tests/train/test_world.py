import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import (
    ALLOCATIONS,
    BATCH,
    CONTEXT,
    D_SAE,
    RUN,
    SIZE,
    fit_until,
    fitted,
    pre_activations,
    select_and_fit,
    selections,
    together,
    wait_for_an_orphan,
)
from torch import Tensor

from sae_runtime.bundle import folder as bundle
from sae_runtime.train import fit
from sae_runtime.train.world import World


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The selections and fitted weights of each of two processes."""
    return together(tmp_path_factory.mktemp("world"), select_and_fit)


@pytest.mark.parametrize(
    "limits", ["total", "nothing", "everything", "limits", "full limits", "all limits", "nominated"]
)
def test_processes_select_what_one_selects(found: list[dict[str, Any]], limits: str) -> None:
    alone = selections(pre_activations(), World())[limits]
    parts = [result["selections"][limits] + rank * BATCH // SIZE * D_SAE for rank, result in enumerate(found)]
    assert torch.equal(torch.cat(parts), alone)
    if limits == "total":
        assert min(len(part) for part in parts) < len(alone) // 2 - 50, "the shares must differ for this test"


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_processes_fit_what_one_fits(found: list[dict[str, Any]], allocation: str) -> None:
    alone = fitted(allocation, World())
    first, second = (result[allocation] for result in found)
    assert torch.equal(first["active at the first step"], alone["active at the first step"])
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(first[name], second[name]), "the processes have one model"
        assert distance(first[name], alone[name]) < 1e-6
    assert torch.equal(first["density"], second["density"])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("acts") / "x.npy"
    np.save(path, (rng.random((1500, 8)) < 0.3) @ rng.standard_normal((8, 12)))
    return path


def test_processes_resume_bit_for_bit_and_in_the_same_number(acts: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = together(tmp_path, fit_until, acts, tmp_path / "whole" / "sae", None, None)
    assert together(tmp_path, fit_until, acts, tmp_path / "sae", 23, None) == [{"stopped": 23}] * SIZE
    with pytest.raises(ValueError, match="is of a run with processes 2, this one has 1; repeat that"):
        fit(acts, tmp_path / "alone", RUN, run_state=tmp_path / "run", resume=True)
    for again in together(tmp_path, fit_until, acts, tmp_path / "sae", None, None):
        assert again.keys() == whole.keys()
        assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_the_death_of_a_process_is_one_sentence_in_the_others(acts: Path, tmp_path: Path, lost: int) -> None:
    (said,) = together(tmp_path, fit_until, acts, tmp_path / "sae", 5, lost, lost=lost)
    assert re.fullmatch(
        r"another process of this run ended \([^\n]+\); see its own message, then go on with --resume(; the run state "
        r"of step 5 is kept in .*run)?",
        said["error"],
    )
    assert not (tmp_path / "sae").exists() and (tmp_path / "run").exists()


def test_processes_end_when_their_parent_is_killed() -> None:
    receiver, sender = CONTEXT.Pipe(duplex=False)
    agent = CONTEXT.Process(target=wait_for_an_orphan, args=(sender,))
    agent.start()
    sender.close()
    assert sorted(receiver.recv() for _ in range(SIZE)) == [0, 1]
    assert agent.pid is not None
    os.kill(agent.pid, signal.SIGKILL)
    assert receiver.poll(30), "a process goes on"
    with pytest.raises(EOFError):  # no process is left that could send
        receiver.recv()
    agent.join()


def test_torchrun_fits_the_bundle_that_one_process_fits(acts: Path, tmp_path: Path) -> None:
    shutil.copy(acts, tmp_path)
    settings = "train --activations x.npy --allocation feature --k 3 --d-sae 40 --tokens 5120 --batch 128 --device cpu"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*torchrun, str(Path(sys.executable).with_name("sae-runtime")), *settings.split()]
    command += ["-o", "together", "--metrics", "m.jsonl", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == "together", "one of the processes speaks"
    fit(acts, tmp_path / "alone", RUN)
    alone, shared = (bundle.read(tmp_path / name) for name in ("alone", "together"))
    for tensor in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        expected, found = (torch.tensor(one.tensor(tensor)) for one in (alone, shared))
        assert distance(found, expected) < 1e-2  # the exact comparison is above: here threads differ too
    assert shared.manifest.measured["l0"] == pytest.approx(alone.manifest.measured["l0"], rel=1e-2)
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "alone", "together", "m.jsonl"}


def test_processes_share_a_batch_equally_or_refuse_it() -> None:
    two = World()
    two.size = 2
    assert two.part(98) == 49 and World().part(99) == 99
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 processes that share it, got 99"):
        two.part(99)
