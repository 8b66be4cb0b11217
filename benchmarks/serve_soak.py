"""Minutes of mixed load on `sae-runtime serve`: memory, open files and errors over time, and SIGTERM under load.

MODEL is a deployed model that embeds texts; its SAE's bundle is served beside it. Callers encode and steer rows, read
features of texts, embed with edits, ask what is refused, and leave in the middle of an answer. At the end the server
gets SIGTERM while all of them ask: a request that had been sent before must be answered.
"""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
from callers import Caller, Outcome, call, http_request, infer_request
from servers import Server, ours

from sae_runtime import SAE, Edit, load
from sae_runtime.core.edits import as_inputs

FOLDER = click.Path(exists=True, path_type=Path)
WORDS = "the file is open and nobody has read it since the sea was seen in a small village of mountains".split()


def mixed(sae: SAE, rng: np.random.Generator, callers: int) -> list[Caller]:
    """Callers of every kind, each with requests of its own; those of `refused` are answered by 400."""
    found = []
    for number in range(callers):
        kind = ("encode", "steer", "features", "embed", "refused")[number % 5]
        requests = []
        for _ in range(16):
            x = rng.standard_normal((int(rng.choice([1, 1, 5, 64, 256])), sae.d_in), dtype=np.float32)
            text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 60))))
            feature = int(rng.integers(sae.d_sae))
            if kind == "encode":
                requests.append(infer_request("sae.encode", {"x": x}, binary=bool(rng.integers(2))))
            elif kind == "steer":
                edits = as_inputs([[Edit.set(feature, 4.0)]], sae.d_sae)
                requests.append(infer_request("sae.steer", {"x": x, **edits}))
            elif kind == "features":
                requests.append(http_request("/v1/features", json.dumps({"model": "model", "input": [text]}).encode()))
            elif kind == "embed":
                told = {"edits": [{"feature": feature, "add": 2.0}]}
                body = {"model": "model", "input": [text, "a cake"], "sae": told}
                requests.append(http_request("/v1/embeddings", json.dumps(body).encode()))
            else:
                x[0, 0] = np.nan
                requests.append(infer_request("sae.encode", {"x": x}))
        found.append(Caller(tuple(requests), every=0.05, group=kind))
    return found


def leave(port: int, request: bytes, done: threading.Event) -> None:
    """Ask and go away, again and again."""
    while not done.wait(0.1):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)


def line(server: Server, seconds: float, seen: Outcome) -> str:
    """A row of the table."""
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(seen.codes.items()))
    threads = len(os.listdir(f"/proc/{server.pid}/task"))
    return f"| {seconds:,.0f} | {server.memory:.0f} | {server.descriptors} | {threads} | {codes} |"


def stopped_under_load(server: Server, callers: list[Caller]) -> Counter[int]:
    """Codes of what callers asked while the server got SIGTERM."""
    seen: list[Outcome] = []
    asking = threading.Thread(target=lambda: seen.append(call(server.port, callers, 30.0, pid=server.pid)))
    asking.start()
    time.sleep(4)
    os.kill(server.pid, signal.SIGTERM)
    asking.join()
    return seen[0].codes


@click.command(help=__doc__)
@click.argument("model", type=FOLDER)
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--callers", default=40, show_default=True)
@click.option("--port", default=18310, show_default=True)
@click.option("--every", default=30.0, show_default=True, help="seconds between two lines")
def main(model: Path, minutes: float, callers: int, port: int, every: float) -> None:
    """Print a line for each while, and how the server ended."""
    bundle = model / "sae"
    sae, rng = load(bundle), np.random.default_rng(0)
    people, done = mixed(sae, rng, callers), threading.Event()
    with ours({"sae": bundle, "model": model}, port) as server:
        large = infer_request("sae.encode", {"x": rng.standard_normal((4096, sae.d_in), dtype=np.float32)})
        threading.Thread(target=leave, args=(port, large, done), daemon=True).start()
        print("| seconds | memory, MB | open files | threads | answers by code |\n|---|---|---|---|---|")
        begin, faults = time.monotonic(), list[str]()
        while time.monotonic() - begin < 60 * minutes:
            seen = call(port, people, min(every, 60 * minutes), pid=server.pid)
            print(line(server, time.monotonic() - begin, seen), flush=True)
            faults += [one for one in seen.faults if "NaN" not in one]
        done.set()
        codes = stopped_under_load(server, people)
        print("\nUnexpected:", *(faults or ["nothing"]), sep="\n")
        print(f"\nSIGTERM under load: answers by code {dict(codes)}; exit status {server.wait()}")


if __name__ == "__main__":
    main()
