"""The onnxruntime sessions of a deployed model: of its whole graph and of the cut one, each opened at its first use."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.folder import BundleChanged, BundleError
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.splices import Spliced, check_weights
from sae_runtime.deployed.host_inputs import HostInputs, read_host_inputs
from sae_runtime.deployed.layout import Layout
from sae_runtime.engine import forks
from sae_runtime.engine.sessions import CPU, Provider, name_of, open_session, run_session
from sae_runtime.engine.watching import Watch

THRESHOLD = "{}/threshold"  # the name of an SAE's threshold in a spliced graph


class OpenGraph(NamedTuple):
    """An open graph.

    Attributes:
        path: the graph.
        session: an onnxruntime InferenceSession.
        inputs: what it takes for texts.
        required: names of the inputs of SAEs that have no default.
        outputs: the declared shape of each of the host's own outputs, by name.
    """

    path: Path
    session: Any
    inputs: HostInputs
    required: frozenset[str]
    outputs: Mapping[str, tuple[int | str | None, ...]]


class HostSessions:
    """The graphs of a deployed model. Threads may share them; they pickle, and work in forked processes.

    Attributes:
        layout: the model's files.
        options: providers and threads.

    Args:
        layout: the model's files.
        providers: of `open_session`.
        threads: of `open_session`.
    """

    def __init__(self, layout: Layout, providers: Sequence[Provider], threads: int | None) -> None:
        self.layout = layout
        self.options: dict[str, Any] = {"providers": tuple(providers), "threads": threads}
        self._known: dict[Path, dict[str, Identity]] = {}
        self._keeps = False
        self._begin()
        forks.begin_anew(self)

    def _begin(self) -> None:
        self._open: dict[tuple[bool, str | None], OpenGraph] = {}  # by the arguments of `open`
        self._watch = Watch()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return HostSessions, (self.layout, *self.options.values())

    def after_fork(self) -> None:
        """Forget the parent's sessions, whose threads this process does not have."""
        forks.keep_forever(self._open)
        self._begin()

    @property
    def on_cpu(self) -> bool:
        """Whether the preferred provider is that of the CPU."""
        return tuple(name_of(provider) for provider in self.options["providers"][:1]) == CPU

    def check(self) -> None:
        """Check which files the graphs read, and that the SAEs' weights are those that were put in.

        Raises:
            BundleError: the weights of an SAE are others.
            FileNotFoundError: a file is missing.
            ValueError: a graph reads files outside of its folder, or is none.
        """
        for graph in filter(None, (self.layout.graph, self.layout.features)):
            files = [graph, *check_external(graph)]
            self._known[graph] = {str(file): known for file in files if (known := identity(file)) is not None}
        for spliced in self.layout.splices.values():  # the part reads the same files
            check_weights(self.layout.graph, spliced)

    def open(self, *, cut: bool = False, lowered: str | None = None) -> OpenGraph:
        """An open graph.

        Args:
            cut: the cut graph if there is one, else the whole one.
            lowered: the SAE that gives every feature above 0, whatever its threshold is.

        Raises:
            BundleError: onnxruntime refuses the graph, or a file changed since `check`.
            ValueError: the graph takes something that no text gives.
        """
        part = self.layout.features if cut else None
        key = (part is not None, lowered)
        if (found := self._open.get(key)) is None:
            with self._lock:
                if (found := self._open.get(key)) is None:
                    found = self._opened(self.layout.graph if part is None else part, lowered)
                    # One of a graph at a time, unless both are kept: each has weights of the host in memory.
                    others = {o: one for o, one in self._open.items() if self._keeps or o[0] != key[0]}
                    self._open = {**others, key: found}
        # A part that needs no mask lost it, and so does not tell that texts may be padded to its length.
        if part is not None and found.inputs.time is not None and found.inputs.mask is None:
            return self.open(lowered=lowered)
        return found

    def open_both(self) -> None:
        """Open the whole graph and the cut one now and keep both, for callers who ask for either in turn.

        Errors are those of `open`.
        """
        self._keeps = True
        self.open()
        self.open(cut=True)

    def _opened(self, graph: Path, lowered: str | None) -> OpenGraph:
        if graph not in self._known:
            self.check()
        known, layout = self._known[graph], self.layout
        # By its path: from bytes, no link of a Hub cache is followed.
        session = _session(graph, None if lowered is None else layout.splices[lowered], self.options)
        for file, before in known.items():
            if identity(file) != before:
                raise BundleChanged(Path(file))
        mapped = {file: before for file, before in known.items() if file != str(graph)}
        self._watch.files = {**self._watch.files, **mapped}
        own = {name for one in layout.splices.values() for name in one.inputs}
        inputs = read_host_inputs(session, own=own, config=layout.config, genai=layout.genai, graph=graph)
        required = frozenset(value.name for value in session.get_inputs() if value.name in own)
        given = {name for one in layout.splices.values() for name in one.outputs}
        given |= {past.present for past in inputs.past}
        outputs = {value.name: tuple(value.shape) for value in session.get_outputs() if value.name not in given}
        return OpenGraph(graph, session, inputs, required, outputs)

    def run(self, graph: OpenGraph, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Outputs of an open graph by name.

        Raises:
            BundleChanged: a program wrote into a file that onnxruntime has mapped.
            MemoryError: there is too little memory.
            ValueError: onnxruntime fails.
        """
        begun = time.monotonic_ns()
        arrays = run_session(graph.session, feed, graph.path, outputs)
        self._watch.look(begun, _changed)
        return arrays

    def close(self) -> None:
        """Close the graphs. A later call opens them again."""
        with self._lock:
            self._open.clear()
            self._watch.files = {}


def _session(graph: Path, lowered: Spliced | None, options: Mapping[str, Any]) -> Any:
    """The session of a graph, in which an SAE may have the threshold 0."""
    if lowered is None:
        return open_session(graph, **options)
    threshold = {THRESHOLD.format(lowered.name): np.zeros(lowered.d_sae, np.float32)}
    try:
        return open_session(graph, **options, weights=threshold)
    except BundleError as error:
        raise BundleError(
            f"{graph} has no threshold of {lowered.name} that can be lowered, as the batch rule needs it; splice the "
            "host again, or take the served rule"
        ) from error


def _changed(path: str) -> None:
    raise BundleChanged(Path(path))
