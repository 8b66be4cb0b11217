"""Where torch computes, and what it says when there is no room left."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_NO_ROOM = (
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
)  # on the CPU and in cuBLAS: no class of its own
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt


def usable_device(name: str | None) -> torch.device:
    """The torch device of that name; None gives cuda where there is one, else cpu.

    Raises:
        ValueError: torch knows no such device, or cannot compute on it here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" takes tensors, but has no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"torch cannot compute on {name} ({first_line(error)}); use another --device") from error
    return device


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, once and for all; elsewhere nothing happens.

    The gradients of every step are new tensors, and the kernel would clear fresh pages for them each time: a twentieth
    of a step (docs/log.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's ways of saying that memory is full into MemoryError; also a decorator.

    Raises:
        MemoryError: torch could not allocate memory within the block.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _NO_ROOM):
            raise MemoryError(f"{first_line(error)}; give smaller batches or fewer features") from error
        raise


def first_line(error: BaseException) -> str:
    """What an exception says first, without the full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
