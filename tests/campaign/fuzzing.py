"""Worker processes that judge strangers' inputs, many each; one that dies or takes too long shows a fault.

A kind of input is a module here with `prepare(home)`, which makes the sound ones, `draw(rng, home)`, which gives an
input as JSON, and `judge(input, home)`, which gives an outcome; a wrong one begins with FAULT. Found inputs are kept in
`corpus/`, a file for each kind, and `replay` judges them again.
"""

import contextlib
import importlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from campaign.kept import keep
from campaign.server import import_path

FAULT = "fault: "
TIME_LIMIT = 10.0  # seconds of an input; most take a few hundredths
GROWTH = 400_000  # KiB that an input may add to the most memory of its worker
CORPUS = Path(__file__).parent / "corpus"


class Worker:
    """A process that judges inputs of one kind; it is started anew after it died. Use it as a context."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def judge(self, given: Any) -> str:
        """The outcome of an input."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died; then there is no answer
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], TIME_LIMIT)
        if not ready:
            self._end()
            return f"{FAULT}it took more than {TIME_LIMIT:g} seconds"
        outcome = process.stdout.readline()
        if not outcome:
            code = process.wait()
            self._end()
            return f"{FAULT}the process ended with {code}"
        return str(json.loads(outcome))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.fuzzing", self._kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", f"no worker for {self._kind}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def fuzz(kind: str, seconds: float, folder: Path, seed: int, processes: int = 1) -> dict[str, int]:
    """Draw and judge inputs of a kind for this time, and keep one of each kind of fault."""
    counts, known, lock = Counter(tried=0, faults=0), set[str](), threading.Lock()
    module = importlib.import_module(f"campaign.{kind}")
    home = folder / kind
    home.mkdir(parents=True)
    module.prepare(home)

    def work(number: int) -> None:
        with Worker(kind) as worker:
            end = time.monotonic() + seconds  # from when it is ready
            for n in range(number, sys.maxsize, processes):
                given = module.draw(random.Random(f"{seed} {n}"), home)
                if time.monotonic() > end:
                    return
                outcome = worker.judge(given)
                with lock:
                    counts["tried"] += 1
                    if not outcome.startswith(FAULT):
                        counts[outcome] += 1
                        continue
                    counts["faults"] += 1
                    if outcome[:90] not in known:
                        known.add(outcome[:90])
                        keep(folder, kind, seed=seed, number=n, wrong=outcome, input=given)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(counts)


def replay(kind: str, inputs: Iterable[Any] | None = None) -> list[str]:
    """The faults that the inputs of the corpus still show."""
    given = json.loads((CORPUS / f"{kind}.json").read_text()) if inputs is None else inputs
    with Worker(kind) as worker:
        judged = [(one, worker.judge(one)) for one in given]
    return [f"{outcome}: {json.dumps(one)}" for one, outcome in judged if outcome.startswith(FAULT)]


def _serve(kind: str) -> None:
    """Judge the inputs of stdin, a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module = importlib.import_module(f"campaign.{kind}")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        module.prepare(home)
        answers.write("ready\n")
        answers.flush()
        for line in sys.stdin:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                outcome = module.judge(json.loads(line), home)
            except Exception:
                outcome = (
                    FAULT + traceback.format_exc().strip().rpartition("\n")[2][:200] + traceback.format_exc()[-1500:]
                )
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > GROWTH and not outcome.startswith(FAULT):
                outcome = f"{FAULT}it took {grown // 1024} MiB of memory"
            answers.write(json.dumps(outcome) + "\n")
            answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
