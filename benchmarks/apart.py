"""A step in a process of its own, as its users run it: with its library's own settings of threads and memory."""

import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch.multiprocessing
from torch import Tensor

Step = Callable[[Tensor], object]


def apart(build: Callable[..., Step], *arguments: Any) -> Step:
    """What build(*arguments) gives, in a process that ends with this one; a call waits for the step's end.

    Raises:
        EOFError: when called, if the process has died; its own error stands on stderr.
    """
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    before = os.environ.get("THP_MEM_ALLOC_ENABLE")
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0"  # torch's default, which `fit` changes for its own process
    try:
        context.Process(target=_serve, args=(there, build, arguments), daemon=True).start()
    finally:
        del os.environ["THP_MEM_ALLOC_ENABLE"]
        os.environ.update({} if before is None else {"THP_MEM_ALLOC_ENABLE": before})
    there.close()

    def step(x: Tensor) -> None:
        here.send(x)  # by shared memory
        here.recv()

    return step


def _serve(calls: Connection, build: Callable[..., Step], arguments: tuple[Any, ...]) -> None:
    step = build(*arguments)
    with suppress(EOFError):  # the other process has ended
        while True:
            step(calls.recv())
            calls.send(None)
