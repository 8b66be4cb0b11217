"""Processes for tests that kill them or let them fit together. A server that has imported torch once forks them.

`together` starts several gloo processes as torchrun does. Each sees the same whole batches and works on its part of
them. Its result comes back through a file.
"""

import dataclasses
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae_runtime.bundle import folder as bundle
from sae_runtime.cli import main
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.stream import StreamedRows
from sae_runtime.train.recipe import derive
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.selection import select
from sae_runtime.train.trainer import StepStats, Trainer
from sae_runtime.train.world import World, joined

D_IN, D_SAE, BATCH, STEPS = 16, 192, 64, 40
ALLOCATIONS = ("token", "mutual", "feature")
SIZE = 2
CONTEXT = multiprocessing.get_context("forkserver")
# torch._dynamo comes with the first optimiser.
CONTEXT.set_forkserver_preload(["sae_runtime.train.fitting", "torch._dynamo"])

Task = Callable[..., dict[str, Any]]


def started(folder: Path, function: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that calls a function in a folder. Its stderr goes to a file beside the folder, FOLDER.stderr."""
    process = CONTEXT.Process(target=_call_in, args=(folder, function, arguments))
    process.start()
    return process


def _call_in(folder: Path, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.chdir(folder)
    sys.stderr = folder.with_name(f"{folder.name}.stderr").open("w", buffering=1)
    function(*arguments)


def together(folder: Path, task: Task, *arguments: Any, lost: int | None = None) -> list[dict[str, Any]]:
    """The results of a task in each process, by rank. The process of rank `lost` is expected to die."""
    port = free_port()
    running = [CONTEXT.Process(target=_begin, args=(rank, port, folder, task, *arguments)) for rank in range(SIZE)]
    for process in running:
        process.start()
    for rank, process in enumerate(running):
        process.join(timeout=120)
        assert process.exitcode == (9 if rank == lost else 0), f"process {rank} ended with {process.exitcode}"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE) if rank != lost]


def command_line(*arguments: str) -> None:
    """Run the command line."""
    main(arguments)


def fit_often_saved(data: HarvestConfig, holdout: float, pool_bytes: float, config: TrainConfig) -> None:
    """Fit "sae" in this folder on one thread, with a run state "run" of every step."""
    torch.set_num_threads(1)
    source = StreamedRows(data, holdout, config.seed, pool_bytes)
    fit(source, "sae", config, run_state=Path("run"), run_state_seconds=0)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _begin(rank: int, port: int, folder: Path, task: Task, *arguments: Any) -> None:
    _become(rank, port)
    torch.save(task(*arguments), folder / f"{rank}.pt")


def _become(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore, which a killed process leaves behind
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    os.environ.update(ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def pre_activations() -> Tensor:
    """Pre-activations [BATCH, D_SAE] whose largest are all in the first rows, so that processes hold unequal shares."""
    z = torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(3))
    z[: BATCH // 8] += 3
    return z


def selections(z: Tensor, world: World) -> dict[str, Tensor]:
    """Positions of the matches in the flattened part z [n, D_SAE], under several limits."""
    limits = torch.arange(D_SAE) % 4
    selected = {
        "total": select(z, total=5 * BATCH, world=world),
        "nothing": select(z, total=0, world=world),
        "everything": select(z, total=BATCH * D_SAE, world=world),
        "limits": select(z, total=3 * BATCH, per_feature=limits, world=world),
        "full limits": select(z, total=int(limits.sum()), per_feature=limits, world=world),
        "all limits": select(z, total=BATCH * D_SAE, per_feature=limits, world=world),
        "nominated": select(z.bfloat16(), total=5 * BATCH, world=world, exact=lambda positions: z.view(-1)[positions]),
    }
    return {name: positions for name, (positions, _) in selected.items()}


def fitted(allocation: str, world: World) -> dict[str, Tensor]:
    """Weights after STEPS steps on this process's part of every batch, and the matches of the first by feature."""
    config = TrainConfig(allocation=allocation, k=4, d_sae=D_SAE, tokens=BATCH * STEPS, batch=BATCH, warmup_share=0.5)
    model = SparseAutoencoder(D_SAE, torch.zeros(D_IN), generator=torch.Generator().manual_seed(0))
    recipe = dataclasses.replace(derive(config, D_IN), dead_tokens=256)
    trainer = Trainer(model, config, recipe, rng=np.random.default_rng(0), world=world)
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(24, D_IN, generator=generator)
    counts = torch.empty(0)
    for step in range(STEPS):
        x = (torch.rand(BATCH, 24, generator=generator) < 0.1).float() @ basis
        x += 0.1 * torch.randn(BATCH, D_IN, generator=generator)
        trainer.step(x.chunk(world.size)[world.rank])
        if step == 0:
            counts = trainer.tracker.silent_tokens == 0
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return {**parameters, "active at the first step": counts, "density": trainer.tracker.density}


def select_and_fit() -> dict[str, Any]:
    """Task: the selections of this process, and its fitted weights by allocation."""
    with joined("cpu") as (world, _):
        result: dict[str, Any] = {
            "selections": selections(pre_activations().chunk(world.size)[world.rank].contiguous(), world)
        }
        return result | {allocation: fitted(allocation, world) for allocation in ALLOCATIONS}


class Stopped(Exception):
    pass


RUN = TrainConfig(allocation="feature", k=3, d_sae=40, tokens=40 * 128, batch=128, device="cpu")


def fit_until(activations: Path, out: Path, stop: int | None, dying: int | None) -> dict[str, Any]:
    """Task: fit RUN with a run state of every step beside `out`, or resume it; give the bundle's tensors or the error.

    Every process stops before the step `stop`. With `dying`, only the process of that rank dies there, without a word
    to the others.
    """
    step = Trainer.step

    def stopping(self: Trainer, x: Tensor) -> StepStats:
        if self.step_number == stop:
            if dying is None:
                raise Stopped
            if os.environ["RANK"] == str(dying):
                os._exit(9)
        return step(self, x)

    Trainer.step = stopping  # type: ignore[method-assign]  # in a process of its own
    try:
        run_state = out.with_name("run")
        fit(activations, out, RUN, run_state=run_state, run_state_seconds=0, resume=True)
    except Stopped:
        return {"stopped": stop}
    except ValueError as error:
        return {"error": str(error)}
    read = bundle.read(out)
    return {name: torch.tensor(read.tensor(name)) for name in read.specs}


def wait_for_an_orphan(said: Connection) -> None:
    """Start the processes as torchrun does, and wait. Each reports when it has joined the others, then computes."""
    port, end = free_port(), time.monotonic() + 60
    for rank in range(SIZE):
        if os.fork() == 0:
            _become(rank, port)
            with joined("cpu") as (world, _):
                said.send(rank)
                sys.stderr.close()
                while world.count(int(time.monotonic() < end)):
                    pass
            os._exit(0)
    time.sleep(60)
