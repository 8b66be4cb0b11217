"""The onnxruntime sessions of a bundle's graphs, with our defaults and error messages."""

import dataclasses
import functools
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import folder
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.folder import Bundle, BundleError
from sae_runtime.engine import forks
from sae_runtime.engine.watching import Watch

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

CPU = ("CPUExecutionProvider",)
CUDA = "CUDAExecutionProvider"
_MOST_THREADS = 1024  # onnxruntime has no limit and starts any number
_ENTRIES: dict[str, str] = {}  # settings of every session of this process
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# TF32 keeps 10 bits of each factor. This error moves features across their threshold.
_OPTIONS = {CUDA: {"use_tf32": "0"}}

# Else onnxruntime prints on stdout, where data goes, that a provider failed, and goes on with the CPU.
NO_FALLBACK: Mapping[str, Any] = {"enable_fallback": 0}

Provider = str | tuple[str, Mapping[str, str]]
"""An onnxruntime execution provider: its name, or its name and options, as onnxruntime documents them."""


def open_session(
    path: Path,
    *,
    graph: bytes | None = None,
    providers: Sequence[Provider] = CPU,
    threads: int | None = None,
    optimise: bool = True,
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> Any:
    """An onnxruntime InferenceSession for a graph.

    Args:
        path: the graph, in the folder of its weights.
        graph: the bytes of the graph, where the caller has read and checked them.
        providers: onnxruntime execution providers, the preferred one first. TF32 is off on CUDA unless the option
            use_tf32 turns it on.
        threads: number of threads; None means all cores.
        optimise: let onnxruntime fuse operations; without it, equal graphs of two opsets compute equal bits.
        weights: what takes the place of weights that the graph reads from other files, by name.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: a provider is not available here or does not start, `threads` is out of range, or the path is not
            UTF-8.
        BundleError: onnxruntime refuses the graph or its weights.

    >>> [output.name for output in open_session(Path(bundle_path) / "encode.onnx").get_outputs()]
    ['indices', 'values']
    """
    refuse_other_bytes(path)
    require("cpu")
    import onnxruntime

    names = [name_of(provider) for provider in providers]
    available = onnxruntime.get_available_providers()
    if not names or not set(names) <= set(available):
        raise ValueError(
            f"the execution providers must be some of {', '.join(available)}, got {', '.join(names) or 'none at all'}; "
            "run: sae-runtime doctor"
        )
    if CUDA in names and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # loads the nvidia packages that sae-runtime[gpu] installs
    options = onnxruntime.SessionOptions()
    # onnxruntime warns that it cannot fold optional inputs as constants, which is intended, and prints each error that
    # it raises too. Why a provider of another device does not start is only printed.
    options.log_severity_level = 4 if tuple(names) == CPU else 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        if not 1 <= threads <= _MOST_THREADS:
            raise ValueError(f"threads must be 1 to {_MOST_THREADS:,}, got {threads}")
        options.intra_op_num_threads = threads
    for name, value in _ENTRIES.items():
        options.add_session_config_entry(name, value)
    if graph is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    model = str(path) if graph is None else graph
    try:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in (weights or {}).values()]
        if weights:
            options.add_external_initializers(list(weights), values)
        chosen = [(name, _options(provider)) for name, provider in zip(names, providers, strict=True)]
        session = onnxruntime.InferenceSession(model, options, providers=chosen, **NO_FALLBACK)
    except Exception as error:  # onnxruntime has an exception class for each status code
        if tuple(names) != CPU and _opens(model, options):
            raise ValueError(f"{names[0]} could not start ({sentence(error)}); run: sae-runtime doctor") from error
        in_bundle = (path.parent / folder.MANIFEST).is_file()
        advice = f"run: sae-runtime export {path.parent}" if in_bundle else "export the model again"
        raise BundleError(f"onnxruntime refuses {path} ({sentence(error)}); {advice}") from error
    session.weights = values  # which the session may read where they are
    if session.get_providers()[0] != names[0]:
        raise ValueError(
            f"{names[0]} could not start, only {', '.join(session.get_providers())}; run: sae-runtime doctor"
        )
    return session


def let_threads_sleep() -> None:
    """Let the threads of all graphs that this process opens from now on sleep when they have nothing to do.

    By default they go round in a loop for a while and wait for more. A server needs the cores for its callers.

    >>> let_threads_sleep()
    """
    _ENTRIES["session.intra_op.allow_spinning"] = "0"


def refuse_other_bytes(path: Path) -> None:
    """Raise ValueError if a path is not UTF-8, since onnx and onnxruntime open no such file.

    >>> refuse_other_bytes(Path("sae/encode.onnx"))
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"onnxruntime opens no graph at {path}, whose name is not UTF-8; rename it") from error


def _opens(model: str | bytes, options: Any) -> bool:
    """Whether the CPU's provider opens a graph."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(model, options, providers=list(CPU), **NO_FALLBACK)
    except Exception:  # onnxruntime has an exception class for each status code
        return False
    return True


def run_session(
    session: Any, feed: Mapping[str, NDArray[Any]], what: object, outputs: Sequence[str] | None = None
) -> list[NDArray[Any]]:
    """The outputs of a session for these inputs.

    Args:
        session: an onnxruntime InferenceSession.
        feed: the inputs, by name.
        what: the graph in messages, such as its path.
        outputs: the names of the outputs; None for all.

    Raises:
        MemoryError: there is too little memory for these inputs.
        RunError: onnxruntime refuses the inputs, or fails on them.

    >>> session = open_session(Path(bundle_path) / "encode.onnx")
    >>> indices, values = run_session(session, {"x": x}, "encode.onnx")
    """
    with _Sentences(what):
        return list(session.run(outputs, feed))


def run_binding(session: Any, binding: Any, what: object) -> None:
    """Run a session with the inputs and outputs of an IOBinding; `what` and errors are those of `run_session`.

    >>> session = open_session(Path(bundle_path) / "encode.onnx")
    >>> binding = session.io_binding()
    >>> binding.bind_cpu_input("x", x)
    >>> binding.bind_output("values")
    >>> run_binding(session, binding, "encode.onnx")
    """
    with _Sentences(what):
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()


class RunError(ValueError):
    """onnxruntime refuses the inputs of a run, or fails on them."""


class _Sentences:
    """Makes onnxruntime's error of a run a MemoryError or a RunError; it has a class for each status code.

    A class, since a generator would take 2 us of each run.
    """

    def __init__(self, what: object) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        if re.search("allocate|bad_alloc|out of memory|smaller than requested", str(error)):
            raise MemoryError(f"{self._what}: give fewer tokens at once") from error
        raise RunError(
            f"onnxruntime could not run {self._what} ({sentence(error)}); export it again, or run: sae-runtime doctor"
        ) from error


def sentence(error: object) -> str:
    """The text of an error on one line.

    >>> sentence(ValueError("two   words"))
    'two words'
    """
    return " ".join(str(error).split())


def name_of(provider: Provider) -> str:
    """The name of a provider.

    >>> name_of((CUDA, {"device_id": "1"}))
    'CUDAExecutionProvider'
    """
    return provider if isinstance(provider, str) else provider[0]


def _options(provider: Provider) -> dict[str, str]:
    """The options of a provider: our defaults, replaced by the options of the caller."""
    given = {} if isinstance(provider, str) else provider[1]
    return {**_OPTIONS.get(name_of(provider), {}), **given}


class Sessions:
    """The graphs of one bundle, each opened at its first use. Threads may share the sessions.

    Sessions can be pickled, copied and forked. What is open stays in its process, and a new process opens its own.

    Args:
        bundle: of the graphs.
        providers: of `open_session`.
        threads: of `open_session`.
        verify: as for `folder.read`, if the bundle is read again.
        arrived: whether another process read the bundle; then it is read again before the first graph is opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        providers: Sequence[Provider],
        threads: int | None,
        verify: bool,
        arrived: bool = False,
    ) -> None:
        # The working directory may be another when a graph is opened.
        self.bundle = dataclasses.replace(bundle, path=bundle.path.absolute())
        self._verify, self._arrived = verify, arrived
        self._providers, self._threads = tuple(providers), threads
        self._begin()
        forks.begin_anew(self)

    def _begin(self) -> None:
        self._open: dict[tuple[str, bool], Any] = {}
        self._watch, self._names = Watch(), dict[str, str]()  # of the open graphs' files; their names by path
        self._pool: ThreadPoolExecutor | None = None
        self.lock = threading.Lock()  # also for others: a forked process gets it free, whoever held it in the parent

    def __reduce__(self) -> tuple[Any, ...]:
        arrive = functools.partial(
            Sessions, providers=self._providers, threads=self._threads, verify=self._verify, arrived=True
        )
        return arrive, (self.bundle,)

    def after_fork(self) -> None:
        """Forget the parent's sessions, whose threads this process does not have."""
        forks.keep_forever((self._open, self._pool))
        self._begin()

    @property
    def opened(self) -> set[tuple[str, bool]]:
        """The graphs that are open, each with its `shared` of `open`."""
        return set(self._open)

    @property
    def pool(self) -> "ThreadPoolExecutor":
        """The threads that run graphs opened as `shared`, one for each worker; they start at the first use."""
        from concurrent.futures import ThreadPoolExecutor  # only here, so that a deployed model loads faster

        with self.lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sae-runtime")
            return self._pool

    def close(self) -> None:
        """End the threads of the pool and close all graphs. A later call opens them again."""
        with self.lock:
            pool, self._pool = self._pool, None
            self._open.clear()
            self._watch.files = {}
        if pool is not None:
            pool.shutdown(wait=True)

    @property
    def workers(self) -> int:
        """Number of computing threads: as the caller asked, or else one for each core that this process may use."""
        if self._threads is not None:
            return self._threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @property
    def on_cpu(self) -> bool:
        """Whether the preferred provider is that of the CPU."""
        return tuple(name_of(provider) for provider in self._providers[:1]) == CPU

    @property
    def device(self) -> tuple[str, int]:
        """Device of the preferred provider: "cpu" or "cuda", as onnxruntime names it, and its number."""
        first = self._providers[0]
        if name_of(first) != CUDA:
            return "cpu", 0
        return "cuda", int(_options(first).get("device_id", 0))

    def open(self, name: str, *, shared: bool = False) -> Any:
        """The session of a graph.

        Args:
            name: file name of the graph.
            shared: compute on the calling thread alone, since other threads use the other cores.

        Raises:
            BundleError: the bundle lacks the graph or changed since it was read, or onnxruntime refuses the graph.
        """
        with self.lock:
            if (name, shared) not in self._open:
                if self._arrived:
                    self.bundle.take_checks_of(folder.read(self.bundle.path, verify=self._verify))
                    self._arrived = False
                path, graph, weights = self.bundle.path / name, self.bundle.graph(name), self.bundle.read_by(name)
                # From bytes, onnxruntime does not follow the links of a Hub cache.
                linked = any((path.parent / file).is_symlink() for file in weights)
                threads = 1 if shared else self._threads
                with self.bundle.unchanged(name, *weights):
                    session = open_session(
                        path, graph=None if linked else graph, providers=self._providers, threads=threads
                    )
                self._names |= {str(path.parent / file): file for file in weights}
                read = {str(path.parent / file): self.bundle.checked[file] for file in weights}
                self._watch.files = {**self._watch.files, **read}
                self._open[name, shared] = session
            return self._open[name, shared]

    def run(self, name: str, feed: dict[str, NDArray[Any]], *, shared: bool = False) -> Any:
        """The outputs of a graph for these inputs; the other arguments and errors are those of `open`.

        Raises:
            BundleChanged: a program wrote into the weights, which onnxruntime has mapped.
            MemoryError: there is too little memory for this number of tokens.
            ValueError: onnxruntime fails.
        """
        session, begun = self.open(name, shared=shared), time.monotonic_ns()
        with _Sentences(f"{name} of {self.bundle.path}"):
            outputs = session.run(None, feed)
        self._watch.look(begun, self._refuse)
        return outputs

    def _refuse(self, path: str) -> None:
        self.bundle.refuse_change(self._names[path])

    def run_bound(self, name: str, session: Any, binding: Any) -> None:
        """Run a session with its bound tensors, as soon as the device has computed the inputs.

        Raises:
            MemoryError: there is too little memory for this number of tokens.
            ValueError: onnxruntime fails.
        """
        begun = time.monotonic_ns()
        run_binding(session, binding, f"{name} of {self.bundle.path}")
        self._watch.look(begun, self._refuse)


@functools.cache
def int8_levels() -> int:
    """The largest int8 level of an activation with which this machine multiplies exactly: 127 or 63.

    Without VNNI or similar instructions the processor adds two products in 16 bits. This sum may saturate with 8-bit
    factors, but not with 7-bit factors.

    >>> int8_levels() in (63, 127)
    True
    """
    require("cpu")
    from importlib import resources

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = resources.files("sae_runtime.engine").joinpath("probe.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, options, providers=list(CPU), **NO_FALLBACK)
    x = np.array([[127] * 8, [-127] * 8, [127, -127] * 4], np.float32)
    (y,) = session.run(None, {"x": x})
    return 127 if (y == 127 * x.sum(axis=1, keepdims=True)).all() else 63
