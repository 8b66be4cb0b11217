"""`sae-runtime serve` under the load of 64 callers, beside the bare loop, kserve's server, and FastAPI with SAELens.

The SAEs are random directions with thresholds for an L0 of 16, d_in 384 (made_sae.py). Callers are one more process,
whose processor time is measured and taken off. All servers stay open; they take turns, and each round begins with
another. On two cores with all peers it takes at most 10 minutes. The columns:

- requests/s and rows/s by the clock;
- processor: milliseconds of the server's processor time a request;
- of the bare loop: processor time a row of `SAE.encode` in a loop over the same requests in one process, divided by
  the server's. "itself" is the bare loop once more.
"""

import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from callers import Caller, Outcome, call, http_request, infer_request
from made_sae import made
from numpy.typing import NDArray
from servers import KSERVE, RAY, Server, fastapi, kserve, ours

from sae_runtime import SAE, Edit, load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.core.edits import as_inputs

D_IN = 384
SMALL, LARGE = "sae1536", "sae24576"
BIG_ROWS = 16_384
FASTAPI = "FastAPI, SAELens"
MARK = "<!-- measured -->"
FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True)
class Call:
    """A call of a bundle: `encode`, or `steer` with edits."""

    model: str
    x: NDArray[np.float32]
    edits: tuple[Edit, ...] = ()

    def request(self, *, binary: bool = True) -> bytes:
        """The call by the Open Inference Protocol."""
        if not self.edits:
            return infer_request(f"{self.model}.encode", {"x": self.x}, binary=binary)
        edits = as_inputs([list(self.edits)], 1 << 30)
        return infer_request(f"{self.model}.steer", {"x": self.x, **edits}, binary=binary)

    def json_request(self) -> bytes:
        """The call for twenty lines of FastAPI."""
        body = json.dumps({"x": self.x.tolist()}).encode()
        return http_request(f"/encode/{self.model}", body, {"Content-Type": "application/json"})

    def bare(self, saes: Mapping[str, SAE]) -> object:
        """The call without a server."""
        sae = saes[self.model]
        return sae.steer(self.x, list(self.edits)) if self.edits else sae.encode(self.x)


@dataclass(frozen=True, eq=False)
class Load:
    """What the callers of a table send; call number i belongs to caller i modulo the callers."""

    title: str
    calls: Sequence[Call]

    @property
    def rows(self) -> float:
        """Rows of a request, on average."""
        return statistics.mean(len(call.x) for call in self.calls)


def loads(rng: np.random.Generator) -> list[Load]:
    """The loads, the same calls for every server."""

    def x(rows: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, D_IN), dtype=np.float32)

    def mixed(number: int) -> Call:
        edits = tuple(Edit.set(int(f), 4.0) for f in rng.choice(1536, size=number % 5, replace=False))
        return Call((SMALL, LARGE)[number % 2], x((1, 7, 64, 256)[number // 2 % 4]), edits)

    return [
        Load("1 row, d_sae 1,536", [Call(SMALL, x(1)) for _ in range(256)]),
        Load("1 row, d_sae 24,576", [Call(LARGE, x(1)) for _ in range(256)]),
        Load("64 to 256 rows, d_sae 24,576", [Call(LARGE, x(rows)) for rows in (64, 96, 128, 256) * 16]),
        Load("both, 1 to 256 rows, up to 4 edits", [mixed(number) for number in range(128)]),
    ]


def bundle(home: Path, d_sae: int) -> Path:
    """A bundle of random directions, made once."""
    out = home / f"sae{d_sae}"
    if not (out / "sae_runtime.json").is_file():
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2048, D_IN), dtype=np.float32)
        with tempfile.TemporaryDirectory() as like:
            weights = {
                **{"W_enc": np.zeros((D_IN, 2), np.float32), "W_dec": np.ones((2, D_IN), np.float32)},
                **{"b_enc": np.zeros(2, np.float32), "b_dec": np.zeros(D_IN, np.float32)},
                "threshold": np.ones(2, np.float32),
            }
            architecture = Architecture(d_in=D_IN, d_sae=2, selection="threshold")
            manifest = Manifest(architecture=architecture, allocation=Allocation(kind="mutual", k=1.0), slots=2)
            bundles.write(Path(like) / "like", weights, manifest)
            made(out, Path(like) / "like", x, d_sae=d_sae)
    return out


def callers_of(requests: Sequence[bytes], callers: int, *, every: float | None = None, group: str = "") -> list[Caller]:
    """The requests, dealt to so many callers."""
    return [Caller(tuple(requests[number::callers]), every, group) for number in range(callers)]


def bare(calls: Sequence[Call], saes: Mapping[str, SAE], seconds: float) -> float:
    """Processor seconds of a call, on average, in a loop without a server."""
    for one in calls[:8]:
        one.bare(saes)
    count, begin, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        for one in calls:  # all, since they differ
            one.bare(saes)
            count += 1
    return (time.process_time() - processor) / count


def answers_are_right(server: Server, calls: Sequence[Call], saes: Mapping[str, SAE]) -> None:
    """Ask the first calls by HTTP and compare with `SAE.encode` and `SAE.steer`."""
    import tritonclient.http as http

    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for one in calls[:8]:
            inputs: dict[str, NDArray[Any]] = {
                "x": one.x,
                **(as_inputs([list(one.edits)], 1 << 30) if one.edits else {}),
            }
            asked = []
            for name, array in inputs.items():
                asked.append(
                    http.InferInput(name, array.shape, {"float32": "FP32", "int64": "INT64"}[str(array.dtype)])
                )
                asked[-1].set_data_from_numpy(array)
            answer = client.infer(f"{one.model}.{'steer' if one.edits else 'encode'}", asked)
            sae = saes[one.model]
            if one.edits:
                np.testing.assert_array_equal(answer.as_numpy("y"), sae.steer(one.x, list(one.edits)))
            else:
                for name, expected in zip(("indices", "values"), sae.encode_slots(one.x), strict=True):
                    np.testing.assert_array_equal(answer.as_numpy(name), expected)


@dataclass(frozen=True)
class Plan:
    """How long each turn takes, how many there are, how many callers, and after what time a table begins no round."""

    seconds: float
    rounds: int
    callers: int
    table: float


def table(load_: Load, servers: Mapping[str, tuple[Server, list[bytes]]], saes: Any, plan: Plan) -> dict[str, float]:
    """Print a line for each server; requests a second by server."""
    runs: dict[str, Callable[[], Outcome]] = {}
    for name, (server, requests) in servers.items():
        callers = callers_of(requests, min(plan.callers, len(requests)))
        runs[name] = functools.partial(call, server.port, callers, plan.seconds, pid=server.pid)
        warm = call(server.port, callers[:4], 0.5, pid=server.pid)
        if set(warm.codes) != {200}:
            raise RuntimeError(f"{name} answers {dict(warm.codes)}: {warm.faults}")
    seen: dict[str, list[Outcome]] = {name: [] for name in runs}
    loops: list[tuple[float, float]] = []
    order, begin = list(runs), time.monotonic()
    for number in range(plan.rounds):
        if number and time.monotonic() - begin > plan.table:  # a slow peer takes long to answer what was sent
            break
        order = order[1:] + order[:1]
        loops.append((bare(load_.calls, saes, plan.seconds / 2), bare(load_.calls, saes, plan.seconds / 2)))
        for name in order:
            seen[name].append(runs[name]())
    middle = statistics.median
    loop = middle(first for first, _ in loops)
    print(f"\n{load_.title}; the bare loop takes {1e3 * loop:.3f} ms of the processor a request, ", end="")
    print(f"itself {middle(first / second for first, second in loops):.2f}; {len(loops)} turns each\n")
    print("| server | requests/s | rows/s | processor, ms/request | of the bare loop | p50, ms | p99, ms | failed |")
    print("|---|---|---|---|---|---|---|---|")
    rates = {}
    for name, outcomes in seen.items():
        rates[name] = rate = middle(one.answered / one.seconds for one in outcomes)
        each = middle(one.server / one.answered for one in outcomes)
        share = middle(first / (one.server / one.answered) for (first, _), one in zip(loops, outcomes, strict=True))
        p50, p99 = (middle(one.quantile(q) for one in outcomes) for q in (0.5, 0.99))
        failed = sum(count for one in outcomes for code, count in one.codes.items() if code != 200)
        rows = rate * load_.rows
        print(
            f"| {name} | {rate:,.0f} | {rows:,.0f} | {1e3 * each:.3f} | {share:.2f} | {p50:.1f} | {p99:.1f} "
            f"| {failed} |"
        )
    return rates


def half_load(load_: Load, server: Server, requests: list[bytes], rate: float, plan: Plan) -> None:
    """Print the times at half of the rate that the server has reached."""
    callers = callers_of(requests, plan.callers, every=2 * plan.callers / rate)
    seen = call(server.port, callers, 2 * plan.seconds, pid=server.pid)
    failed = sum(count for code, count in seen.codes.items() if code != 200)
    share = seen.server / seen.seconds
    print(
        f"| {load_.title} | {seen.answered / seen.seconds:,.0f} | {share:.2f} | {seen.quantile(0.5):.2f} | "
        f"{seen.quantile(0.9):.2f} | {seen.quantile(0.99):.2f} | {failed} |"
    )


def beside_a_large_one(server: Server, saes: Mapping[str, SAE], rng: np.random.Generator, plan: Plan) -> None:
    """Print how long callers of one row wait while another caller sends 16,384 rows a request."""
    sae, large = saes[LARGE], rng.standard_normal((BIG_ROWS, D_IN), dtype=np.float32)
    rows = sae._tiler.tile
    begin = time.perf_counter()
    for first in range(0, 8 * rows, rows):
        sae.encode(large[first : first + rows])
    tile = 1e3 * (time.perf_counter() - begin) / 8
    one = [infer_request(f"{LARGE}.encode", {"x": large[number : number + 1]}) for number in range(64)]
    every = max(0.05, 4e-3 * tile)  # who asks more often than a tile takes waits for his own requests
    small = callers_of(one, 8, every=every, group="one row")
    big = [Caller((infer_request(f"{LARGE}.encode", {"x": large}),), group="16,384 rows")]
    print(f"\nA tile has {rows} rows at d_sae 24,576 and takes {tile:.1f} ms in the bare loop.\n")
    print(f"| 8 callers of one row, each every {1e3 * every:.0f} ms ", end="")
    print("| p50, ms | p90, ms | p99, ms | longest, ms | requests |")
    print("|---|---|---|---|---|---|")
    for title, callers in (("alone", small), ("beside a caller of 16,384 rows", small + big)):
        seen = call(server.port, callers, 6 * plan.seconds, pid=server.pid)
        p50, p90, p99, longest = (seen.quantile(share, "one row") for share in (0.5, 0.9, 0.99, 1.0))
        count = len(seen.times["one row"])
        print(f"| {title} | {p50:.1f} | {p90:.1f} | {p99:.1f} | {longest:.1f} | {count} |", flush=True)
    print(f"\nMedian of a request of 16,384 rows: {seen.quantile(0.5, '16,384 rows'):,.0f} ms.")


class Both(io.TextIOBase):
    """Writes to the terminal and keeps a copy."""

    def __init__(self) -> None:
        self._out, self.text = sys.stdout, io.StringIO()

    def write(self, text: str) -> int:
        """Write to both."""
        self._out.write(text)
        self._out.flush()
        return self.text.write(text)


def measure(cache: Path, plan: Plan, port: int) -> None:
    """Start the servers and print all tables."""
    rng = np.random.default_rng(1)
    paths = {SMALL: bundle(cache, 1536), LARGE: bundle(cache, 24576)}
    saes = {name: load(path) for name, path in paths.items()}
    with ExitStack() as stack:
        own = stack.enter_context(ours(paths, port))
        alone = stack.enter_context(ours(paths, port + 1, merged=False))
        peers = {}
        if KSERVE.is_file():
            peers["kserve"] = stack.enter_context(kserve(paths, port + 2))
        if (RAY / "fastapi").is_dir():
            peers[FASTAPI] = stack.enter_context(fastapi(paths, port + 3))
        rates, requests = {}, {}
        for load_ in loads(rng):
            answers_are_right(own, load_.calls, saes)
            requests[load_] = binary = [one.request() for one in load_.calls]
            servers = {"ours": (own, binary), "ours, not merged": (alone, binary)}
            if not any(one.edits for one in load_.calls):  # the peers cannot steer
                servers["ours, JSON"] = (own, [one.request(binary=False) for one in load_.calls])
                for name, peer in peers.items():
                    as_json = name == FASTAPI
                    servers[name] = (peer, [one.json_request() if as_json else one.request() for one in load_.calls])
            rates[load_] = table(load_, servers, saes, plan)["ours"]
        print("\nAt half of the requests a second above:\n")
        print("| load | requests/s | processors in use | p50, ms | p90, ms | p99, ms | failed |")
        print("|---|---|---|---|---|---|---|")
        for load_, rate in rates.items():
            half_load(load_, own, requests[load_], rate, plan)
        beside_a_large_one(own, saes, rng, plan)


@click.command(help=__doc__)
@click.option("--cache", default=Path("build/serve"), type=FOLDER, show_default=True, help="keeps the bundles")
@click.option("--seconds", default=2.0, show_default=True, help="of a turn")
@click.option("--rounds", default=5, show_default=True, help="turns of each server")
@click.option("--callers", default=64, show_default=True)
@click.option(
    "--table-seconds", default=75.0, show_default=True, help="seconds after which a table begins no more turns"
)
@click.option("--port", default=18300, show_default=True, help="the first of four")
@click.option("--out", type=click.Path(path_type=Path), help=f"document that gets the tables behind its {MARK}")
def main(
    cache: Path, seconds: float, rounds: int, callers: int, table_seconds: float, port: int, out: Path | None
) -> None:
    """Print all tables."""
    cache.mkdir(parents=True, exist_ok=True)
    written = Both()
    with redirect_stdout(written):
        if (load := os.getloadavg()[0]) > 0.5:
            print(
                f"Other programs use this machine (a load of {load:.1f}), so only ratios of one table tell something."
            )
        measure(cache, Plan(seconds, rounds, callers, table_seconds), port)
    if out is not None:
        head, mark, _ = out.read_text().partition(MARK)
        out.write_text(f"{head}{mark or MARK}\n{written.text.getvalue()}")


if __name__ == "__main__":
    main()
