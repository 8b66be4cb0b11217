"""What serving a bundle takes: seconds to load, and memory of one process and of four.

Each figure is of fresh processes that import sae_runtime alone, without torch. Memory is the proportional set size
(pages that several processes map count in parts) after encoding, beyond that of the same process before it loads.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import click
import wide

_CHILD = """
import json, sys, time
import numpy as np
import onnxruntime
from sae_runtime import load
from sae_runtime.bundle import folder as bundle

def resident():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return {line.split()[0][:-1]: int(line.split()[1]) << 10 for line in lines if line.split()[0] in ("Pss:", "Rss:")}

path, graph, verify, n = sys.argv[1], sys.argv[2], sys.argv[3] == "True", int(sys.argv[4])
before = resident()
start = time.perf_counter()
sae = load(path, graph=graph, verify=verify)
seconds = time.perf_counter() - start
x = np.resize(bundle.read(path, verify=False).sample(), (n, sae.d_in))
if n:
    sae.encode(x)
print("ready", flush=True)
sys.stdin.readline()
after = resident()
print(json.dumps({"seconds": seconds, "before": before, "after": after}), flush=True)
"""


def serve(path: Path, *, graph: str, verify: bool, tokens: int, processes: int) -> list[dict[str, float]]:
    """Load and encode in so many processes at once; what each of them says once all have."""
    arguments = [sys.executable, "-c", _CHILD, str(path), graph, str(verify), str(tokens)]
    children = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    said = []
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        figures = json.loads(child.stdout.readline())
        grown = {name: (figures["after"][name] - figures["before"][name]) / 2**20 for name in ("Pss", "Rss")}
        said.append({"seconds": figures["seconds"], **grown})
    for child in children:
        child.communicate()
    return said


@click.command()
@wide.text_option
@wide.cache_option
@click.option("--d-sae", default=24_576, show_default=True)
@click.option("--steps", default=1000, type=click.IntRange(min=1), show_default=True)
@click.option("--rounds", default=5, type=click.IntRange(min=1), show_default=True)
def main(text: Path, cache: Path, d_sae: int, steps: int, rounds: int) -> None:
    """Print two tables."""
    path = wide.bundle(cache, text, kind="mutual", d_sae=d_sae, steps=steps)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    print(f"{path.name}, {size:.0f} MiB on disk\n\n| graph | verify | load, ms |\n|---|---|---|")
    for graph in ("encode_exact.onnx", "encode.onnx"):
        for verify in (True, False):
            runs = [serve(path, graph=graph, verify=verify, tokens=0, processes=1)[0] for _ in range(rounds)]
            print(f"| {graph} | {verify} | {statistics.median(run['seconds'] for run in runs) * 1e3:.0f} |")
    print("\n| graph | tokens | processes | MiB of each | MiB together |\n|---|---|---|---|---|")
    for graph in ("encode_exact.onnx", "encode.onnx"):
        for tokens, processes in ((1, 1), (1024, 1), (16_384, 1), (1024, 4)):
            runs = serve(path, graph=graph, verify=False, tokens=tokens, processes=processes)
            mine = statistics.mean(run["Rss"] for run in runs)
            together = sum(run["Pss"] for run in runs)
            print(f"| {graph} | {tokens:,} | {processes} | {mine:.0f} | {together:.0f} |", flush=True)


if __name__ == "__main__":
    main()
