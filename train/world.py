"""The processes that fit one SAE together, each on its part of every batch."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from sae_runtime.train.device import first_line, usable_device

_LOOK_SECONDS = 0.5  # between looks for the process that started this one


class World:
    """What a step asks of the other processes. This one is alone, and asks nobody."""

    rank = 0
    size = 1

    def count(self, number: int) -> int:
        """The sum of a whole number over all processes."""
        return number

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; the same bits everywhere."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The vectors of all processes, which may differ in length, one after the other by rank."""
        return tensor

    def wait(self) -> None:
        """Go on when every process has come here."""


class Processes(World):
    """The processes of torch.distributed's default group; where one of them ends, the others raise ValueError."""

    def __init__(self, device: torch.device) -> None:
        """Take part with tensors on `device`; the group stands."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    def count(self, number: int) -> int:
        """As World."""
        return int(self.sum_(torch.tensor(number, device=self._device)))

    def sum_(self, tensor: Tensor) -> Tensor:
        """As World."""
        with _together():
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """As World."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(tensor)
        longest = max(sizes := self.sum_(lengths).tolist())
        padded = tensor.new_zeros(longest)
        padded[: len(tensor)] = tensor
        everyone = [torch.empty_like(padded) for _ in range(self.size)]
        with _together():
            dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    def wait(self) -> None:
        """As World."""
        self.count(0)


@contextmanager
def joined(name: str | None) -> Iterator[tuple[World, torch.device]]:
    """The processes that torchrun started this one with, for a while, and this one's device of that name.

    Within the block this process ends when the one that started it is gone, however that went: left behind by a killed
    torchrun, the processes would go on and write beside a run that goes on from their checkpoint.

    Raises:
        ValueError: torch cannot compute on the device, the processes could not join, or one of them ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(), usable_device(name)
        return
    if name == "cuda" or (name is None and torch.cuda.is_available()):
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = usable_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _ending_with_parent():
        with _together():  # the others wait while the first calibrates, measures and writes
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
        try:
            yield Processes(device), device
        finally:  # its threads must not meet the end of the interpreter
            dist.destroy_process_group()


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if os.getppid() != parent:
                with suppress(OSError, ValueError):  # stderr may have gone with it
                    sys.stderr.write("error: what started this process is gone (torchrun?); go on with --resume\n")
                    sys.stderr.flush()
                os._exit(1)  # at once, also while the others are waited for

    threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"another process of this run ended ({first_line(error)}); see what it said, then go on with --resume"
        ) from error
