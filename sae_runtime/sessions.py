"""onnxruntime sessions, opened without surprises."""

import functools
import os
import re
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import Bundle, BundleError
from sae_runtime.extras import require

CPU = ("CPUExecutionProvider",)
CUDA = "CUDAExecutionProvider"
_MOST_THREADS = 1024  # onnxruntime starts as many as it is told to, whatever the machine has
# TF32 keeps 10 bits of what it multiplies: enough to move features across their cut.
_OPTIONS = {CUDA: {"use_tf32": "0"}}

Provider = str | tuple[str, Mapping[str, str]]
"""An onnxruntime execution provider: its name, or its name and options, as onnxruntime documents them."""


def open_session(path: Path, *, providers: Sequence[Provider] = CPU, threads: int | None = None) -> Any:
    """An onnxruntime InferenceSession for a graph.

    Args:
        path: the graph; its weights lie beside it.
        providers: onnxruntime execution providers, the preferred one first. CUDA's TF32 is off unless an option
            (use_tf32) turns it on.
        threads: threads an operator may use; None leaves it to onnxruntime (all cores).

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a provider is unknown here or could not start.
        BundleError: onnxruntime refuses the graph or the weights that it refers to.
    """
    require("cpu")
    import onnxruntime

    names = [name_of(provider) for provider in providers]
    if not names or not set(names) <= set(onnxruntime.get_available_providers()):
        raise ValueError(
            f"providers {names} are not all available, expected some of "
            f"{onnxruntime.get_available_providers()}; run: sae-runtime doctor"
        )
    if CUDA in names and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # of the nvidia packages that sae-runtime[gpu] installs
    options = onnxruntime.SessionOptions()
    # Warnings would tell of every optional input that it is not a constant, which is what it is for.
    options.log_severity_level = 3
    if threads is not None:
        if not 1 <= threads <= _MOST_THREADS:
            raise ValueError(f"threads must be 1 to {_MOST_THREADS:,}, got {threads}")
        options.intra_op_num_threads = threads
    try:
        chosen = [(name, _options(provider)) for name, provider in zip(names, providers, strict=True)]
        session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        reason = " ".join(str(error).split())
        raise BundleError(f"onnxruntime refuses {path} ({reason}); run: sae-runtime export {path.parent}") from error
    if session.get_providers()[0] != names[0]:
        raise ValueError(f"{names[0]} could not start, only {session.get_providers()}; run: sae-runtime doctor")
    return session


def name_of(provider: Provider) -> str:
    """The name of a provider."""
    return provider if isinstance(provider, str) else provider[0]


def _options(provider: Provider) -> dict[str, str]:
    """Its options, and ours where it says nothing else."""
    given = {} if isinstance(provider, str) else provider[1]
    return {**_OPTIONS.get(name_of(provider), {}), **given}


class Sessions:
    """The graphs of one bundle, each opened when it is first run. Safe to share between threads."""

    def __init__(self, bundle: Bundle, *, providers: Sequence[Provider], threads: int | None, verify: bool) -> None:
        self._bundle, self._verify = bundle, verify
        self._providers, self._threads = tuple(providers), threads
        self._open: dict[tuple[str, bool], Any] = {}
        self._lock = threading.Lock()

    @property
    def workers(self) -> int:
        """How many threads there are to compute with."""
        if self._threads is not None:
            return self._threads
        # What this process may use, where the system tells.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def on_cpu(self) -> bool:
        """Whether the preferred provider is the CPU's."""
        return tuple(name_of(provider) for provider in self._providers[:1]) == CPU

    @property
    def device(self) -> tuple[str, int]:
        """Where the preferred provider computes, as onnxruntime calls it: "cpu" or "cuda", and the number."""
        first = self._providers[0]
        if name_of(first) != CUDA:
            return "cpu", 0
        return "cuda", int(_options(first).get("device_id", 0))

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
        except Exception as error:
            self._refuse_memory(name, error)
            raise

    def captured(self, name: str) -> Any:
        """A new session of a graph that on CUDA is captured by its first run and replayed by the next.

        All its inputs and outputs must stay where they are.
        """
        first, *others = self._providers
        if name_of(first) == CUDA:
            first = CUDA, {**_options(first), "enable_cuda_graph": "1"}
        path = self._bundle.graph(name, verify=self._verify)
        return open_session(path, providers=[first, *others], threads=self._threads)

    def run_bound(self, name: str, session: Any, binding: Any) -> None:
        """Run a session of a graph with what is bound to it, whichever stream made its inputs.

        Raises:
            MemoryError: there is too little memory for so many tokens.
        """
        try:
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            self._refuse_memory(name, error)
            raise

    def _refuse_memory(self, name: str, error: Exception) -> None:
        """Raise MemoryError if that is what onnxruntime means: it has a class for every status code, none for this."""
        if re.search("allocate|bad_alloc|out of memory|smaller than requested", str(error)):
            raise MemoryError(f"{name} of {self._bundle.path}: give fewer tokens at once") from error


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
