"""What a feature store costs: building one of a million tokens, without and with co-firing, and reading a feature.

The features are made up: words and features come with Zipf's frequencies, L0 is 16. Each build is a process of its own,
whose time and peak memory the table has; reading alternates over features that are drawn at random.

    python benchmarks/store.py /tmp/store-benchmark
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime import open_store
from sae_runtime.bundle.manifest import Architecture
from sae_runtime.core.features import Features
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan

_CLI = "from sae_runtime.cli import main; main()"
_QUERIES = ("w3", "w15000", "w3 w40", "nowhere")  # a frequent word, a seldom one, two, and none
_DOCUMENT, _DOCUMENTS, _WORDS = 250, 400, 20_000  # tokens of a document, documents of a part, words of the vocabulary


@dataclass
class ZipfSource:
    """Random words and features as a source of `extract`: the same seed gives the same features."""

    tokens: int
    d_sae: int
    l0: int = 16

    def plan(self) -> Plan:
        """As Source."""
        documents = self.tokens // _DOCUMENT
        starts = range(0, documents, _DOCUMENTS)
        parts = [
            Part(number=i, first=s, documents=min(_DOCUMENTS, documents - s), sha256="") for i, s in enumerate(starts)
        ]
        architecture = asdict(Architecture(d_in=64, d_sae=self.d_sae, selection="topk", k=self.l0))
        facts = {"model": "made up", "hook": "h.3", "sae": None, "d_sae": self.d_sae, "architecture": architecture}
        facts |= {
            "allocation": None,
            "weights_sha256": "0" * 64,
            "source": {},
            "licence": "made up",
            "part": _DOCUMENTS,
        }
        return Plan(facts | {"columns": {"id": "int64"}, "documents": documents}, tuple(parts))

    def rows(self, part: Part) -> PartRows:
        """As Source."""
        rng = np.random.default_rng(part.number)
        n = part.documents * _DOCUMENT
        token = _zipf(rng, n, _WORDS)
        ids = np.sort(_zipf(rng, (n, self.l0), self.d_sae), axis=1)
        new = np.diff(ids, axis=1, prepend=-1) > 0
        counts = new.sum(axis=1)
        values = rng.gamma(2, 1, int(counts.sum())).astype(np.float32) + np.float32(0.01)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        lengths = np.char.str_len(token.astype(str)) + 1
        by_document = lengths.reshape(part.documents, _DOCUMENT)
        end = np.cumsum(by_document + 1, axis=1) - 1
        numbers = np.arange(part.first, part.first + part.documents, dtype=np.int32)
        words = token.reshape(part.documents, _DOCUMENT).tolist()
        columns: dict[str, Any] = {"doc": numbers, "file": ["made.jsonl"] * len(numbers), "row": numbers}
        columns |= {"id": numbers, "text": [" ".join(f"w{word}" for word in line) for line in words]}
        return PartRows(
            Features(indptr, ids[new].astype(np.int32), values, self.d_sae, (n,)),
            doc=np.repeat(numbers, _DOCUMENT),
            pos=np.tile(np.arange(_DOCUMENT, dtype=np.int32), part.documents),
            own=np.ones(n, np.bool_),
            token=token.astype(np.int32),
            begin=(end - by_document).reshape(-1).astype(np.int32),
            end=end.reshape(-1).astype(np.int32),
            documents=columns,
        )

    def vocabulary(self) -> list[str | None]:
        """As Source."""
        return [f"w{word}" for word in range(_WORDS)]


def _zipf(rng: np.random.Generator, shape: Any, size: int) -> Any:
    """Numbers below `size`, of which the one of rank r is drawn in proportion to 1 / (r + 10)."""
    cumulative = np.cumsum(1 / (np.arange(size) + 10))
    return np.minimum(np.searchsorted(cumulative, rng.random(shape) * cumulative[-1]), size - 1)


def _built(features: Path, out: Path, *options: str) -> tuple[float, float, float]:
    """Seconds, seconds of processors, and gigabytes at the peak, of a build in a process of its own."""
    arguments = ["features", "build", str(features), "-o", str(out), "--force", "-q", *options]
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", _CLI, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the build failed with status {status}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def _summary(builds: list[tuple[float, float, float]]) -> dict[str, float]:
    seconds, processors, peak = (statistics.median(each) for each in zip(*builds, strict=True))
    return {"seconds": round(seconds, 1), "of processors": round(processors, 1), "peak GB": round(peak, 2)}


def _reading(store: Path) -> dict[str, list[float]]:
    """Milliseconds, and those of processors, of opening a store, of a feature, and of searches: medians."""
    opened = open_store(store)
    numbers = np.random.default_rng(0).choice(np.flatnonzero(opened.count), 200).tolist()
    calls: dict[str, list[Callable[[], object]]] = {
        "open": [partial(open_store, store)] * 20,
        "feature": [partial(opened.feature, number) for number in numbers],
        **{f"search for {query}": [partial(opened.search, query)] * 5 for query in _QUERIES},
    }
    found = {}
    for name, each in calls.items():
        times = []
        for call in each:
            begin, busy = time.perf_counter(), time.process_time()
            call()
            times.append((time.perf_counter() - begin, time.process_time() - busy))
        found[name] = [round(statistics.median(part) * 1e3, 1) for part in zip(*times, strict=True)]
    return found


def _command(store: Path, rounds: int = 7) -> dict[str, list[float]]:
    """Milliseconds, and those of processors, of `features show` and of its imports alone, alternating: medians."""
    show = [sys.executable, "-c", _CLI, "features", "show", str(store), "371"]
    imports = [
        sys.executable,
        "-c",
        "import sae_runtime.cli.features.show, sae_runtime.store.open_store, pyarrow.parquet",
    ]
    times: dict[str, list[tuple[float, float]]] = {"show": [], "imports": []}
    for _ in range(rounds):
        for name, call in (("show", show), ("imports", imports)):
            begin = time.perf_counter()
            child = subprocess.Popen(call, stdout=subprocess.DEVNULL)
            _, _, usage = os.wait4(child.pid, 0)
            times[name].append((time.perf_counter() - begin, usage.ru_utime + usage.ru_stime))
    return {
        name: [round(statistics.median(part) * 1e3) for part in zip(*each, strict=True)] for name, each in times.items()
    }


def main() -> None:
    """Print a table for each size of SAE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for features and stores; it may stay for another run")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d-sae", type=int, nargs="*", default=[1_536, 6_144, 24_576, 131_072])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for d_sae in given.d_sae:
        features, store = (given.folder / f"{what}-{given.tokens}-{d_sae}" for what in ("features", "store"))
        made = extract(ZipfSource(given.tokens, d_sae), features)
        plain, counted = [], []
        for _ in range(given.rounds):
            plain.append(_built(features, store, "--sample", "0"))
            counted.append(_built(features, store))
        size = sum(path.stat().st_size for path in store.iterdir())
        numbers = {
            "d_sae": d_sae,
            "tokens": made.tokens,
            "matches": made.matches,
            "without co-firing": _summary(plain),
            "with co-firing": _summary(counted),
            "bytes of the store": size,
            "ms, of processors": _reading(store),
            "command, ms, of processors": _command(store),
        }
        print(json.dumps(numbers, indent=2), flush=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"(peak of this process, which makes the features: {own:.2f} GB)")


if __name__ == "__main__":
    main()
