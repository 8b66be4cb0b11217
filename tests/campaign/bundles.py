"""Strangers' bundles: any file changed, and the hashes computed anew.

`inspect` and `load` must refuse one with one sentence, or it answers as before, or as numpy computes in float64 from
the weights that the bundle now has. A graph that computes something else is found by `load(rebuild=True)`.
"""

import contextlib
import functools
import io
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from resealed import reseal

from campaign.fuzzing import FAULT, fuzz
from campaign.mutations import apply
from campaign.mutations import draw as draw_changes
from sae_runtime import SAE, Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.graphs import EXACT
from sae_runtime.cli import main
from sae_runtime.cli.group import _ERRORS, Failure
from sae_runtime.exports import witness

KINDS = {"token": 64, "mutual": 64, "feature": 64, "exact": 512}
Answer = dict[str, NDArray[Any]]


def run(seconds: float, folder: Path, seed: int = 0, processes: int = 1) -> dict[str, int]:
    """Judge changed bundles for this time."""
    return fuzz("bundles", seconds, folder, seed, processes)


def prepare(home: Path) -> None:
    """Write a sound bundle of each kind."""
    from conftest import make_manifest, make_weights, make_x

    from sae_runtime.bundle.stats import counted
    from sae_runtime.exports.export import export

    for kind, d_sae in KINDS.items():
        allocation = "mutual" if kind == "exact" else kind
        stats = counted(np.full(d_sae, 30), np.full(d_sae, 4.0), 300)
        weights, manifest = make_weights(d_sae, allocation), make_manifest(d_sae, allocation)
        bundle.write(home / kind, weights, manifest, sample=make_x(90, seed=8), stats=stats)
        export(home / kind)


def draw(rng: random.Random, home: Path) -> dict[str, Any]:
    """A kind, and changes of its files."""
    kind = rng.choice(sorted(KINDS))
    return {"kind": kind, "changes": draw_changes(rng, home / kind)}


def judge(given: dict[str, Any], home: Path) -> str:
    """The outcome of a bundle with these changes."""
    x = np.random.default_rng(1).normal(0, 1.2, (20, 24)).astype(np.float32)
    before = _before(home / given["kind"], x.tobytes())
    path = home / "changed"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    shutil.copytree(home / given["kind"], path, copy_function=os.link)
    manifest = path / bundle.MANIFEST
    text = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(text)
    apply(path, [change for change in given["changes"] if change["file"] != bundle.MANIFEST])
    reseal(path)
    apply(path, [change for change in given["changes"] if change["file"] == bundle.MANIFEST])
    inspected = _inspected(path)
    if inspected.startswith(FAULT):
        return inspected
    graph = _graph(home / given["kind"])
    outcome = _loaded(path, x, before, graph)
    if outcome.startswith(f"{FAULT}wrong"):
        rebuilt = _loaded(path, x, before, graph, rebuild=True)
        return rebuilt if rebuilt.startswith(FAULT) else "found by rebuild alone"
    return outcome


def _graph(path: Path) -> str | None:
    """The encoder to load with: the SAEs here are too small for `load` to choose this one."""
    return EXACT.file if path.name == "exact" else None


@functools.cache
def _before(path: Path, x: bytes) -> Answer:
    """The answer of a sound bundle."""
    return _answer(load(path, threads=1, graph=_graph(path)), np.frombuffer(x, np.float32).reshape(-1, 24))


def _inspected(path: Path) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main.main(["inspect", str(path)], standalone_mode=False)
    except Failure as error:
        with contextlib.redirect_stderr(said):
            error.show()
    except SystemExit:
        pass
    odd = [c for c in said.getvalue() if not (c.isprintable() or c == "\n")]
    return f"{FAULT}inspect prints {odd[0]!r}" if odd else "inspected"


def _loaded(path: Path, x: NDArray[np.float32], before: Answer, graph: str | None, **settings: Any) -> str:
    """The outcome of a load and of calls."""
    try:
        sae = load(path, threads=1, graph=graph, **settings)
        answer = _answer(sae, x)
    except _ERRORS:
        return "refused"
    if all(name in answer and np.array_equal(answer[name], value, equal_nan=True) for name, value in before.items()):
        return "same"
    wrong = _wrong(path, sae, x, answer)
    return "right" if wrong is None else f"{FAULT}wrong {wrong}"


def _answer(sae: SAE, x: NDArray[np.float32]) -> Answer:
    indices, values = sae.encode_slots(x)
    features = sae.encode(x)
    answer: Answer = {"indices": indices, "values": values, "features": features.to_dense()}
    answer["decoded"] = sae.decode(features, x)
    answer["steered"] = sae.steer(x, [Edit.ablate(3), Edit.add(5, 2.0)])
    if sae.manifest.allocation is not None:
        answer["batch"] = sae.encode_batch(x).to_dense()
    return answer


def _wrong(path: Path, sae: SAE, x: NDArray[np.float32], answer: Answer) -> str | None:
    """What of an answer is not what numpy computes from the bundle's weights, or None."""
    read = bundle.read(path)
    weights, manifest = read.weights(), read.manifest
    architecture = manifest.architecture
    normed = witness.normalise(x, architecture.norm)[0]
    with np.errstate(all="ignore"):
        z = witness.pre_activations(weights, x, architecture.norm)
        # Rounding in float32 grows with the sums' parts, which exceed their sum where they cancel.
        parts = np.abs(normed - weights["b_pre"]) @ np.abs(weights["W_enc"].astype(float)) + np.abs(weights["b_enc"])
        room = 1e-5 * z.max(axis=1, keepdims=True) + 2e-6 * parts
        rows = answer["features"]
        if _differs(rows, witness.served(architecture, weights, z), room):
            return "encode"
        f = np.where(rows > 0, rows, 0)
        decoded = witness.completed(
            weights, f @ weights["W_dec"].astype(float) + weights["b_dec"], x, architecture.norm
        )
        size = witness.normalise(x, architecture.norm)[2]
        scale = (f @ np.abs(weights["W_dec"].astype(float)) + np.abs(weights["b_dec"])) * size + np.abs(x).max()
        if not (np.abs(decoded - answer["decoded"]) <= 1e-5 * scale + 1e-30).all():
            return "decode"
        delta = np.where(np.arange(z.shape[1]) == 3, -f, 0) + np.where(np.arange(z.shape[1]) == 5, 2.0, 0)
        moved = x + size * (delta @ weights["W_dec"].astype(float))
        reach = np.abs(x) + size * (np.abs(delta) @ np.abs(weights["W_dec"].astype(float)))
        slack = (room[:, [3]] + room[:, [5]]) * size * (np.abs(weights["W_dec"][3]) + 1e-30)
        if not (np.abs(moved - answer["steered"]) <= 1e-5 * reach + slack).all():
            return "steer"
        allocation = manifest.allocation
        if allocation is not None and allocation.kind != "token":
            limits = None
            if allocation.quota is not None:
                limits = quota.max_densities(allocation.quota, allocation.k, architecture.d_sae)
            if _differs(answer["batch"], witness.joint(z, allocation.k, limits), room):
                return "encode_batch"
    return None


def _differs(rows: NDArray[Any], expected: witness.Matches, room: NDArray[np.float64]) -> bool:
    """Whether dense rows [n, d_sae] differ from what is expected by more than `room`."""
    near = expected.z <= room
    for cut in expected.cuts:
        near = near | (np.abs(expected.z - cut) <= room)
    active = rows > 0
    wrong = (active != expected.kept) & ~near
    off = active & (np.abs(rows - expected.z) > room)
    return bool(wrong.any() or off.any())
