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

_LOOK_SECONDS = 0.5  # between two checks that the parent process still runs


class World:
    """The processes that share a batch, as a step sees them. This class is the world of a single process.

    >>> ALONE.sum_(torch.ones(2)), ALONE.gather(torch.ones(2)), ALONE.count(3)
    (tensor([1., 1.]), tensor([1., 1.]), 3)
    """

    rank = 0
    size = 1

    def part(self, batch: int) -> int:
        """Tokens of a batch that each process gets.

        >>> ALONE.part(2048)
        2048

        Raises:
            ValueError: the batch does not divide evenly.
        """
        if batch % self.size:
            raise ValueError(f"batch must be a multiple of the {self.size} processes that share it, got {batch}")
        return batch // self.size

    def count(self, number: int) -> int:
        """The sum of a whole number over all processes."""
        return number

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; the same bits in every process."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The vectors of all processes, concatenated by rank; they may differ in length."""
        return tensor

    def wait(self) -> None:
        """Return when every process has called this."""
        self.count(0)


ALONE = World()


class Processes(World):
    """The processes of torch.distributed's default group. When one of them ends, the others raise ValueError."""

    def __init__(self, device: torch.device) -> None:
        """Take part with tensors on `device` in the group, which exists already."""
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
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        with _together():
            dist.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


@contextmanager
def joined(name: str | None) -> Iterator[tuple[World, torch.device]]:
    """For the block: the processes that torchrun started with this one, and this process's device.

    Within the block this process ends when its parent is gone. Otherwise the processes of a killed torchrun would
    continue, and would write into the same files as the run that resumes from their state.

    Args:
        name: a torch device; None: cuda if there is one, else cpu. With several processes, "cuda" gives each
            process the GPU of its own number.

    >>> with joined("cpu") as (world, device):
    ...     world.size, device
    (1, device(type='cpu'))

    Raises:
        ValueError: torch cannot compute on the device, the processes could not join, or one of them ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, usable_device(name)
        return
    if name == "cuda" or (name is None and torch.cuda.is_available()):
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = usable_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _ending_with_parent():
        with _together():  # the timeout is long because the others wait while the first calibrates and writes
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
        try:
            yield Processes(device), device
        finally:  # the group's threads must not outlive the interpreter
            dist.destroy_process_group()


@contextmanager
def _ending_with_parent() -> Iterator[None]:
    """Watch the parent process while the block lasts, and end this process when the parent is gone."""
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if os.getppid() != parent:
                with suppress(OSError, ValueError):  # stderr may be closed too
                    sys.stderr.write("error: the parent of this process ended (torchrun?); go on with --resume\n")
                    sys.stderr.flush()
                os._exit(1)  # sys.exit would wait for the other processes

    threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _together() -> Iterator[None]:
    """Turn the errors that torch raises when another process ended into one sentence."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"another process of this run ended ({first_line(error)}); see its own message, then go on with --resume"
        ) from error
