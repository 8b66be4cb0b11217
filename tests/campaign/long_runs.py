"""One SAE for long and for many: threads, forked and spawned processes, calls and loads without end, flat memory.

Every answer must have the bits of the first. Between the first fifth of the time and its end, memory and descriptors
must not grow.
"""

import gc
import multiprocessing
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from campaign.commands import INPUTS
from campaign.kept import keep
from sae_runtime import SAE, Edit, load

THREADS = 16
MOST_GROWTH = 24 * 2**20  # bytes; an allocator keeps some, a leak of 1 KB a call would pass it in 30,000 calls
Answer = list[NDArray[np.float32]]


def run(seconds: float, folder: Path, seed: int = 0) -> dict[str, int]:
    """Use one SAE in threads, in other processes, and for long; then load it again and again."""
    counts = Counter(tried=0, same=0, faults=0)
    folder.mkdir(parents=True, exist_ok=True)
    INPUTS["served"](folder)  # type: ignore[operator]
    path = folder / "served"
    sae = load(path, threads=1)
    batches = [np.random.default_rng([seed, n]).normal(0, 1.2, (n % 7, 24)).astype(np.float32) for n in range(20)]
    expected = [answers(sae, x) for x in batches]

    def judge(part: str, number: int, found: Answer) -> None:
        counts["tried"] += 1
        same = all(np.array_equal(a, b) for a, b in zip(found, expected[number], strict=True))
        counts["same" if same else "faults"] += 1
        if not same:
            keep(folder, "long-runs", wrong=f"another answer {part}", seed=seed, batch=number)

    def watched(part: str, share: float, step: "object") -> None:
        """Repeat a step for a share of the time, and compare what is used early with what is used at the end."""
        begin, early, n = time.monotonic(), None, 0
        while (passed := time.monotonic() - begin) < share * seconds:
            judge(part, n % len(batches), step(n % len(batches)))  # type: ignore[operator]
            n += 1
            if early is None and passed > share * seconds / 5:
                early = _used()
        memory, descriptors = (b - a for a, b in zip(early or _used(), _used(), strict=True))
        if memory > MOST_GROWTH or descriptors > 0:
            counts["faults"] += 1
            keep(folder, "long-runs", wrong=f"{part}: {memory} bytes, {descriptors} descriptors more", calls=n)

    end = time.monotonic() + 0.3 * seconds
    lock = threading.Lock()

    def one_thread(first: int) -> None:
        while time.monotonic() < end:
            first = (first + 7) % len(batches)
            found = answers(sae, batches[first])
            with lock:
                judge("in a thread", first, found)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one_thread, range(THREADS)))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as processes:
            for n in (3, 4):
                judge(f"after {method}", n, processes.apply(answers, (sae, batches[n])))
    watched("in calls", 0.4, lambda n: answers(sae, batches[n]))
    watched("in loads", 0.2, lambda n: _loaded(path, batches[n]))
    return dict(counts)


def answers(sae: SAE, x: NDArray[np.float32]) -> Answer:
    """What an SAE gives for activations."""
    features = sae.encode(x)
    return [features.to_dense(), sae.decode(features), sae.steer(x, [Edit.ablate(3)]), sae.encode_batch(x).to_dense()]


def _loaded(path: Path, x: NDArray[np.float32]) -> Answer:
    sae = load(path, threads=1)
    try:
        return answers(sae, x)
    finally:
        sae.close()


def _used() -> tuple[int, int]:
    """Bytes of memory and descriptors that this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))
