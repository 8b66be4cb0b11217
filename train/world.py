"""The processes that fit one SAE together, each on its part of every batch."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from sae_runtime.train.device import first_line


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
    """The processes of torch.distributed's default group."""

    def __init__(self, device: torch.device) -> None:
        """Join the group that torchrun's environment describes, unless it stands; tensors are on `device`."""
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    def count(self, number: int) -> int:
        """As World."""
        return int(self.sum_(torch.tensor(number, device=self._device)))

    def sum_(self, tensor: Tensor) -> Tensor:
        """As World."""
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
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    def wait(self) -> None:
        """As World."""
        self.count(0)


def join(name: str | None) -> tuple[World, str | None]:
    """The processes that torchrun started this one with, and the device of that name for this one.

    Raises:
        ValueError: the processes could not join.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(), name
    if name == "cuda" or (name is None and torch.cuda.is_available()):
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    try:
        return Processes(torch.device(name or "cpu")), name
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the processes could not join ({first_line(error)}); start them by torchrun") from error
