"""Readers while a writer replaces: every answer must be that of one bundle, the old one or the new one.

`run` starts a writer as a process of its own: python readers.py ONE OTHER PLACE. It puts two bundles in each other's
place, by turns as a whole folder and file by file, until it is ended. The bundles have files of equal sizes and graphs
of equal bytes, so that only their weights and stats tell them apart.
"""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime import SAE, Edit, load
from sae_runtime.bundle import file_set, files
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.stats import counted

D_IN, D_SAE = 24, 150
Answer = list[NDArray[np.float32]]


def run(seconds: float, folder: Path, seed: int = 0) -> dict[str, int]:
    """Load and use a bundle that a writer replaces all the time.

    Args:
        seconds: how long.
        folder: an empty folder to work in.
        seed: of the two bundles.

    Returns:
        tried: objects that were asked for; old and new: those that answered as one bundle or the other; refused: those
        that said that the bundle changed; faults: those that answered otherwise, or with another error.
    """
    ways = [made(folder / "old", 2 * seed), made(folder / "new", 2 * seed + 1)]
    expected = [answer(load(way, threads=1)) for way in ways]
    place = folder / "place"
    shutil.copytree(ways[0], place)
    counts = dict.fromkeys(("tried", "old", "new", "refused", "faults"), 0)
    writer = subprocess.Popen([sys.executable, __file__, *map(str, ways), str(place)], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            counts["tried"] += 1
            counts[_outcome(place, expected, verify=bool(counts["tried"] % 2))] += 1
        assert writer.poll() is None, "the writer ended"
    finally:
        writer.kill()
        _, said = writer.communicate()
        assert not said, said.decode()
    return counts


def _outcome(place: Path, expected: list[Answer], *, verify: bool) -> str:
    try:
        found = answer(load(place, threads=1, verify=verify))
    except (OSError, ValueError) as error:
        expected_words = ("changed since it was loaded", "changes again and again")
        if any(words in str(error) for words in expected_words):
            return "refused"
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return "faults"
    for name, one in zip(("old", "new"), expected, strict=True):
        if all(map(np.array_equal, found, one)):
            return name
    sys.stderr.write("an answer of neither bundle\n")
    return "faults"


def answer(sae: SAE) -> Answer:
    """What an SAE says, by all of its graphs and by its stats."""
    x = np.random.default_rng(1).normal(0, 1.2, (5, D_IN)).astype(np.float32)
    features = sae.encode(x)
    edited = sae.steer(x, Edit.set(3, times=2))
    return [features.to_dense(), sae.decode(features), edited, sae.encode_batch(x).to_dense()]


def made(path: Path, seed: int) -> Path:
    """An exported bundle of feature choice, whose graphs read derived weights too."""
    from sae_runtime.exports.export import export

    rng = np.random.default_rng(seed)
    decoder = rng.standard_normal((D_SAE, D_IN))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    weights = {"W_enc": decoder.T, "W_dec": decoder, "threshold": rng.uniform(1.6, 2.4, D_SAE)}
    weights |= {"b_enc": rng.normal(-0.1, 0.05, D_SAE), "b_dec": rng.normal(0, 0.3, D_IN)}
    manifest = Manifest(
        architecture=Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold"),
        allocation=Allocation(kind="feature", k=6.0, quota=Quota(exponent=0.8, offset=3.0, slack=1.5 + seed % 2 / 4)),
        slots=24,
    )
    stats = counted(np.full(D_SAE, 5), np.full(D_SAE, seed + 1.0), 10)
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    bundle.write(path, tensors, manifest, stats=stats)
    export(path)
    return path


def _replacements(ways: list[Path], place: Path) -> Iterator[None]:
    """Put the bundles at the place by turns, without end."""
    while True:
        for one in ways:
            with files.new_folder(place, force=True, foreign=bundle.foreign) as folder:
                shutil.copytree(one, folder, dirs_exist_ok=True)
            yield
        for one in ways:
            with file_set.replaced_together(place, last=bundle.MANIFEST) as staged:
                shutil.copytree(one, staged, dirs_exist_ok=True)
            yield


def _write(ways: list[Path], place: Path) -> None:
    for _ in _replacements(ways, place):
        time.sleep(random.uniform(0, 0.1))


if __name__ == "__main__":
    _write([Path(path) for path in sys.argv[1:3]], Path(sys.argv[3]))
