"""Which of a bundle's exact graphs is quicker on this machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sae_runtime import bundle as bundles
from sae_runtime import files, tuned
from sae_runtime.encoder import exact_graphs
from sae_runtime.sae import SAE
from sae_runtime.sessions import CPU, Sessions

ROWS = (1, 16, 256, 1024)  # tokens of a call: steering, serving, extraction
_SECONDS = 1.5  # for each of them, and
_ROUNDS = 5, 100  # rounds at least and at most

Run = Callable[[NDArray[np.float32]], object]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured.

    Attributes:
        graph: the quicker one.
        threads: that the graphs had.
        seconds: of each graph, for a call with as many tokens as each of ROWS; medians.
        totals: of each graph, the sum over ROWS of its time over the quicker graph's: len(ROWS) is the least.
    """

    graph: str
    threads: int
    seconds: Mapping[str, tuple[float, ...]]
    totals: Mapping[str, float]


def tune(path: str | Path, *, threads: int | None = None, clock: Callable[[], float] = time.perf_counter) -> Tuning:
    """Time the exact graphs of a bundle on its sample, and note the quicker one for `load(precision="exact")`.

    One graph is chosen for calls of every size, that with the smallest total of time relative to the quicker graph over
    ROWS: the bits of a token's features must not depend on how many tokens come with it. Both graphs give the same
    matches, and values that agree within 1e-5 of a token's largest.

    Args:
        path: an exported bundle's folder.
        threads: those that `load` will be called with; None means all cores.
        clock: gives seconds.

    Raises:
        BundleError: the folder is no valid bundle, or was not exported yet.
        ValueError: the bundle has only one exact graph, or no sample of activations.
        OSError: the file of `tuned.place` cannot be written.
        ImportError: onnxruntime is not installed.
    """
    bundle = bundles.read(path)
    graphs = exact_graphs(bundle.manifest)
    if len(graphs) < 2:
        raise ValueError(
            f"{bundle.path} has {' and '.join(graphs) or 'no exact graph'}, expected two exact graphs to choose from; "
            f"run: sae-runtime export {bundle.path}, which adds encode_exact.onnx where int8 can be used"
        )
    sample = bundle.sample()
    if sample is None or not len(sample):
        raise ValueError(
            f"{bundle.path} has no sample of activations, and times depend on them; "
            f"run: sae-runtime export {bundle.path} --activations ACTIVATIONS, with typical ones"
        )
    files.check_free(tuned.place(), force=True)
    sessions = Sessions(bundle, providers=CPU, threads=threads, verify=True)
    seconds = timed({graph: SAE(bundle, sessions, graph).encode for graph in graphs}, sample, clock)
    totals = relative(seconds)
    tuning = Tuning(graph=min(totals, key=totals.__getitem__), threads=sessions.workers, seconds=seconds, totals=totals)
    tuned.keep(bundle.manifest, tuning.threads, tuning.graph, {"rows": ROWS, "seconds": seconds})
    return tuning


def timed(
    runs: Mapping[str, Run], sample: NDArray[np.float32], clock: Callable[[], float] = time.perf_counter
) -> dict[str, tuple[float, ...]]:
    """Median seconds of each run for as many tokens as each of ROWS.

    They take turns, each round on the next tokens of the sample [m, d_in], which is repeated where it is short. Of two
    calls in a row the second counts: who serves one graph finds its weights in the cache, and not another's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    least, most = _ROUNDS
    for rows in ROWS:
        taken: dict[str, list[float]] = {name: [] for name in runs}
        begin = clock()
        for number in range(most):
            if number >= least and clock() - begin > _SECONDS:
                break
            x = sample.take(np.arange(number * rows, (number + 1) * rows), axis=0, mode="wrap")
            for name, run in runs.items():
                run(x)
                start = clock()
                run(x)
                taken[name].append(clock() - start)
        for name, times in taken.items():
            seconds[name].append(median(times))
    return {name: tuple(medians) for name, medians in seconds.items()}


def relative(seconds: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """For each name, the sum of its times over the shortest ones."""
    shortest = [min(times) for times in zip(*seconds.values(), strict=True)]
    return {name: sum(t / s for t, s in zip(times, shortest, strict=True)) for name, times in seconds.items()}
