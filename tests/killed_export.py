"""killed_export.py BUNDLE: export copies of a bundle, and kill each export at another change of the file system.

It prints how many kills left the old bundle, how many left the new one, and the number of kills. It forks every process
before any graph is opened, since a fork has no threads.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.exports.export import export

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
KILLED, OLD, NEW = 9, 10, 11


def activations(d_in: int) -> "np.typing.NDArray[np.float32]":
    return np.random.default_rng(5).normal(0, 2, (70, d_in)).astype(np.float32)


def export_until(path: Path, changes: int) -> None:
    """Export with a new sample and encode_gpu.onnx, without encode_exact.onnx; end at once before a change."""
    left = changes

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES:
            if left == 0:
                os._exit(KILLED)
            left -= 1

    sys.addaudithook(count)
    export(path, graphs=["gpu"], activations=activations(bundle.read(path).manifest.architecture.d_in))
    os._exit(0)


def judge(path: Path, samples: list[bytes]) -> None:
    """End with OLD or NEW, the bundle that the graphs belong to, where the whole bundle is valid and serves."""
    read = bundle.read(path)
    for name in read.manifest.graphs:
        read.graph(name)
    old = "encode_exact.onnx" in read.manifest.graphs
    assert old != ("encode_gpu.onnx" in read.manifest.graphs)
    assert (path / bundle.SAMPLE).read_bytes() == samples[0 if old else 1], "the sample does not belong to the graphs"
    assert {file.name for file in path.glob("[!.]*.onnx")} == set(read.manifest.graphs)
    assert (path / "README.md").exists()
    x = activations(read.manifest.architecture.d_in)
    sae = load(path)
    sae.decode(sae.encode(x))
    os._exit(OLD if old else NEW)


def forked(function: Callable[..., None], *arguments: Any) -> int:
    """The exit code of a forked process that calls a function."""
    process = os.fork()
    if process == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(original: Path) -> None:
    """Kill exports, each one change later, until one ends by itself."""
    finished = original.with_name("finished")
    shutil.copytree(original, finished)
    assert forked(export_until, finished, 10**9) == 0
    samples = [(path / bundle.SAMPLE).read_bytes() for path in (original, finished)]
    counts, kills, copy = {OLD: 0, NEW: 0}, 0, original.with_name("killed")
    while True:
        shutil.copytree(original, copy)
        ended = forked(export_until, copy, kills)
        if ended == 0:
            break
        assert ended == KILLED
        counts[forked(judge, copy, samples)] += 1
        kills += 1
        shutil.rmtree(copy)
    sys.stdout.write(f"{counts[OLD]} {counts[NEW]} {kills}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
