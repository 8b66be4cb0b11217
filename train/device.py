"""The device that torch computes on, the memory that it asks for, and its errors when memory is full."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# torch has no exception class for full memory on the CPU and in cuBLAS, so the texts of its messages identify it.
_NO_ROOM = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def usable_device(name: str | None) -> torch.device:
    """The torch device of a name; None chooses cuda if there is one, else cpu.

    >>> usable_device("cpu")
    device(type='cpu')

    Raises:
        ValueError: torch knows no such device, or cannot compute on it here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device "meta" takes tensors but holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"torch cannot compute on {name} ({first_line(error)}); use another --device") from error
    return device


def ask_for_huge_pages() -> None:
    """Have torch put large tensors on huge pages, which saves a tenth of a training step on Linux (docs/log.md).

    torch reads the environment variable when it allocates its first tensor on the CPU. A later call has no effect. A
    value that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory that this process frees; on other systems nothing happens.

    Every step allocates its gradients anew. Without this the kernel clears fresh pages for them each time, which takes
    a twentieth of a step (docs/log.md). The setting lasts as long as the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the errors that torch raises when memory is full into MemoryError. It is also a decorator.

    Raises:
        MemoryError: torch could not allocate memory within the block.

    >>> with memory_errors():
    ...     torch.empty(10**15)
    Traceback (most recent call last):
    MemoryError: ...; give smaller batches or fewer features
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _NO_ROOM):
            raise MemoryError(f"{first_line(error)}; give smaller batches or fewer features") from error
        raise


def first_line(error: BaseException) -> str:
    r"""The first line of an exception's message, without the full stop.

    >>> first_line(ValueError("no room.\nMore follows."))
    'no room'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
