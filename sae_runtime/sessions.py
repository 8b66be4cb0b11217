"""onnxruntime sessions, opened without surprises."""

import functools
import os
import re
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import Bundle, BundleError
from sae_runtime.extras import require

CPU = ("CPUExecutionProvider",)


def open_session(path: Path, *, providers: Sequence[str] = CPU, threads: int | None = None) -> Any:
    """An onnxruntime InferenceSession for a graph.

    Args:
        path: the graph; its weights lie beside it.
        providers: onnxruntime execution providers, the preferred one first.
        threads: threads an operator may use; None leaves it to onnxruntime (all cores).

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a provider is unknown here or could not start.
        BundleError: onnxruntime refuses the graph or the weights that it refers to.
    """
    require("cpu")
    import onnxruntime

    if not providers or not set(providers) <= set(onnxruntime.get_available_providers()):
        raise ValueError(
            f"providers {list(providers)} are not all available, expected some of "
            f"{onnxruntime.get_available_providers()}; run: sae-runtime doctor"
        )
    options = onnxruntime.SessionOptions()
    # Warnings would tell of every optional input that it is not a constant, which is what it is for.
    options.log_severity_level = 3
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        reason = " ".join(str(error).split())
        raise BundleError(f"onnxruntime refuses {path} ({reason}); run: sae-runtime export {path.parent}") from error
    if session.get_providers()[0] != providers[0]:
        raise ValueError(f"{providers[0]} could not start, only {session.get_providers()}; run: sae-runtime doctor")
    return session


class Sessions:
    """The graphs of one bundle, each opened when it is first run. Safe to share between threads."""

    def __init__(self, bundle: Bundle, *, providers: Sequence[str], threads: int | None, verify: bool) -> None:
        self._bundle, self._verify = bundle, verify
        self._providers, self._threads = tuple(providers), threads
        self._open: dict[tuple[str, bool], Any] = {}
        self._lock = threading.Lock()

    @property
    def workers(self) -> int:
        """How many threads there are to compute with."""
        return self._threads or len(os.sched_getaffinity(0))

    @property
    def on_cpu(self) -> bool:
        """Whether the preferred provider is the CPU's."""
        return self._providers[:1] == CPU

    def open(self, name: str, *, shared: bool = False) -> Any:
        """The session of a graph; where callers share the machine, one that computes in the caller's own thread."""
        with self._lock:
            if (name, shared) not in self._open:
                path = self._bundle.graph(name, verify=self._verify)
                threads = 1 if shared else self._threads
                self._open[name, shared] = open_session(path, providers=self._providers, threads=threads)
            return self._open[name, shared]

    def run(self, name: str, feed: dict[str, NDArray[Any]], *, shared: bool = False) -> Any:
        """Outputs of a graph; arguments as for `open`.

        Raises:
            MemoryError: there is too little memory for so many tokens.
        """
        session = self.open(name, shared=shared)
        try:
            return session.run(None, feed)
        except Exception as error:  # onnxruntime raises a class of its own for every status code, none for memory
            if re.search("allocate|bad_alloc|out of memory|smaller than requested", str(error)):
                raise MemoryError(f"{name} of {self._bundle.path}: give fewer tokens at once") from error
            raise


@functools.cache
def int8_levels() -> int:
    """Levels of an activation in int8, either side of 0, with which products are exact on this machine: 127 or 63.

    Without VNNI instructions (or their like) a sum of two products may saturate, and 7 bits are safe.
    """
    require("cpu")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = resources.files("sae_runtime").joinpath("probe.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, options, providers=list(CPU))
    x = np.array([[127] * 8, [-127] * 8, [127, -127] * 4], np.float32)
    (y,) = session.run(None, {"x": x})
    return 127 if (y == 127 * x.sum(axis=1, keepdims=True)).all() else 63
