"""The batch rule over many tokens: tiles and candidates through onnxruntime against the peers' batch top-k.

All run in this process in turn, on the same weights and activations; a row is the median of several rounds, and the
ratio is its time over that of our mutual choice. With --text and --cache, weights are trained and activations real
(wide.py), else features fire by a Zipf law on random activations of unequal length. With --tokens, ours alone over that
many tokens in a file, and the memory that it takes.
"""

import math
import resource
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import wide
from numpy.typing import NDArray
from peers import stand_in_for_nnsight
from timing import median_seconds
from torch import Tensor

from sae_runtime import SAE, load, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.quota import Quota
from sae_runtime.engine.sessions import open_session
from sae_runtime.exports import export

Weights = dict[str, NDArray[np.float32]]

_QUOTA = Quota(exponent=0.9, offset=30.0, slack=3.0)
_GIB = 1 << 30


def make_weights(d_in: int, d_sae: int, k: int, rng: np.random.Generator) -> tuple[Weights, int]:
    """Random weights, feature i above a common threshold on a share of the tokens as the quota has it; and slots."""
    decoder = rng.standard_normal((d_sae, d_in), np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    normal, share = statistics.NormalDist(0, d_in**-0.5), np.minimum(quota.quotas(_QUOTA, k, d_sae), 0.5)
    bias = 0.04 - np.array([normal.inv_cdf(1 - s) for s in share])  # of rows of length 1
    weights = {
        "W_enc": np.ascontiguousarray(decoder.T),
        "W_dec": decoder,
        "b_enc": bias.astype(np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    z = np.maximum(make_rows(512, d_in, rng) @ weights["W_enc"] + weights["b_enc"], 0)
    threshold = np.partition(z, z.size - 512 * k, axis=None)[z.size - 512 * k]
    weights["threshold"] = np.full(d_sae, threshold, np.float32)
    return weights, int(np.quantile((z > threshold).sum(axis=1), 0.999)) + 1


def make_rows(n: int, d_in: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Activations of length about 1."""
    x = rng.standard_normal((n, d_in), np.float32) * np.float32(d_in**-0.5)
    x *= rng.lognormal(0, 0.05, (n, 1)).astype(np.float32)
    return x


def make_bundles(
    folder: Path, k: int, weights: Weights, slots: int, x: NDArray[np.float32], law: Quota = _QUOTA
) -> dict[str, SAE]:
    """Exported bundles of mutual and feature choice with the same weights, features by falling use."""
    d_in, d_sae = weights["W_enc"].shape
    architecture = Architecture(d_in=d_in, d_sae=d_sae, selection="threshold")
    saes = {}
    for kind in ("mutual", "feature"):
        allocation = Allocation(kind=kind, k=float(k), quota=law if kind == "feature" else None)
        manifest = Manifest(architecture=architecture, allocation=allocation, slots=slots)
        bundle.write(folder / kind, weights, manifest, sample=x)
        export(folder / kind)
        saes[kind] = load(folder / kind)
    return saes


def trained(cache: Path, text: Path, d_sae: int, k: int) -> tuple[Weights, int, Quota]:
    """Weights of mutual choice, features by falling use; the slots; and the law of their use, as training fits it."""
    path = wide.bundle(cache, text, kind="mutual", d_sae=d_sae, k=k)
    features = load(path).encode(wide.sample(cache, text, 16_384))
    use = np.bincount(features.indices, minlength=d_sae) / len(features)
    order = np.argsort(-use, kind="stable")
    read = bundle.read(path)
    weights = {name: np.array(read.tensor(name)) for name in read.specs}
    weights |= {name: np.ascontiguousarray(weights[name][order]) for name in ("W_dec", "b_enc", "threshold")}
    weights["W_enc"] = np.ascontiguousarray(weights["W_enc"][:, order])
    exponent, offset, _ = quota.fit(use)
    return weights, read.manifest.slots, Quota(exponent=exponent, offset=offset, slack=3.0)


def sae_lens(weights: Weights, k: int) -> Callable[[Tensor], object]:
    """SAELens's BatchTopK, in which the rule is part of training."""
    import sae_lens.saes as saes

    d_in, d_sae = weights["W_enc"].shape
    sae = saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k))
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        getattr(sae, name).data = torch.from_numpy(weights[name])
    encode: Callable[[Tensor], object] = sae.encode
    return encode


def dictionary_learning(weights: Weights, k: int) -> Callable[[Tensor], object]:
    """dictionary_learning's BatchTopKSAE, told to take the batch's top k."""
    stand_in_for_nnsight()
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

    d_in, d_sae = weights["W_enc"].shape
    sae = BatchTopKSAE(d_in, d_sae, k)
    sae.encoder.weight.data = torch.from_numpy(np.ascontiguousarray(weights["W_enc"].T))
    sae.encoder.bias.data = torch.from_numpy(weights["b_enc"])
    sae.b_dec.data = torch.from_numpy(weights["b_dec"])

    def encode(x: Tensor) -> object:
        return sae.encode(x, use_threshold=False)

    return encode


def fits(run: Callable[[], object]) -> bool:
    """Whether memory holds a run."""
    try:
        run()
    except Exception as error:  # each library has a class of its own for full memory
        if "alloc" not in str(error).lower():
            raise
        return False
    return True


def compare(
    saes: dict[str, SAE], folder: Path, weights: Weights, x: NDArray[np.float32], k: int, rounds: int, graphs: bool
) -> None:
    """Print one row for each implementation; the graphs lie in the bundles of the folder."""
    tensor = torch.from_numpy(x)
    runs: dict[str, Callable[[], object]] = {}
    for kind, sae in saes.items():
        runs[f"{kind} choice"] = partial(sae.encode_batch, x)
        if graphs:
            runs[f"{kind} choice, graph"] = partial(
                open_session(folder / kind / "encode_joint.onnx").run, None, {"x": x}
            )
    runs["SAELens"] = partial(sae_lens(weights, k), tensor)
    runs["dictionary_learning"] = partial(dictionary_learning(weights, k), tensor)
    # More than is free now must be an error of the one that asks for it, not the end of the machine.
    limit = _in_use("VmSize") + _free() - _GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with torch.inference_mode():
        median = median_seconds({name: run for name, run in runs.items() if fits(run)}, rounds)
    ours = median.get("mutual choice", math.nan)
    print(f"{len(x):,} tokens, {torch.get_num_threads()} threads, median of {rounds}")
    for name in runs:
        figures = f"{median[name]:>8.2f} s  {median[name] / ours:>6.2f}" if name in median else "does not fit in memory"
        print(f"{name:<24}  {figures}")


def measure(sae: SAE, path: Path, kind: str) -> None:
    """Encode all activations of a file, and print time and the memory beyond the result and the file's own pages."""
    activations = open_activations(path)
    before, peak, done = _in_use("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, _in_use("RssAnon"))

    rows = 0

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        nonlocal rows
        rows += len(ids)
        return activations.rows(ids)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    features = sae.encode_batch(read, len(activations))
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    output = features.indptr.nbytes + features.indices.nbytes + features.values.nbytes
    beyond, resident = peak - before - output, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(
        f"{kind} choice: {len(features):,} tokens, {rows - len(features):,} of them twice, {len(features.values):,} "
        f"matches, {seconds:.0f} s; output {output / _GIB:.2f} GiB, beyond it {beyond / _GIB:.2f} GiB; "
        f"largest resident set {resident / _GIB:.2f} GiB with torch, weights and the pages of x",
        flush=True,
    )


def _in_use(field: str) -> int:
    """Bytes that this process uses, by /proc/self/status."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) << 10


def _free() -> int:
    memory: dict[str, Any] = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(memory["MemAvailable"].split()[0]) << 10


@click.command()
@click.option("--d-in", default=768)
@click.option("--d-sae", default=24_576)
@click.option("--k", default=32)
@click.option("--n", default=16_384, type=click.IntRange(min=1))
@click.option("--rounds", default=3, type=click.IntRange(min=1))
@click.option("--graphs", is_flag=True, help="encode_joint.onnx too, which holds all pre-activations at once")
@click.option("--tokens", type=int, help="only ours, over that many tokens in a file")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="see wide.py")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="see wide.py")
def main(
    d_in: int,
    d_sae: int,
    k: int,
    n: int,
    rounds: int,
    graphs: bool,
    tokens: int | None,
    text: Path | None,
    cache: Path | None,
) -> None:
    """Print time against the peers, or time and memory over many tokens."""
    warnings.simplefilter("ignore")
    law = _QUOTA
    if text is not None and cache is not None:
        weights, slots, law = trained(cache, text, d_sae, k)
        rows = wide.sample(cache, text, max(n, 4096))
    else:
        weights, slots = make_weights(d_in, d_sae, k, np.random.default_rng(0))
        rows = make_rows(max(n, 4096), d_in, np.random.default_rng(1))
    print(f"batch rule, d_in {rows.shape[1]}, d_sae {d_sae}, k {k}{', trained' if text else ''}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saes = make_bundles(folder, k, weights, slots, rows[:: max(len(rows) // 3072, 1)], law)
        if tokens is None:
            compare(saes, folder, weights, rows[:n], k, rounds, graphs)
            return
        x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float16, (tokens, rows.shape[1]))
        rng = np.random.default_rng(1)
        for begin in range(0, tokens, 4096):
            some = rows[rng.integers(0, len(rows), min(4096, tokens - begin))]
            x[begin : begin + 4096] = some * rng.lognormal(0, 0.05, (len(some), 1))
        x.flush()
        del x
        for kind, sae in saes.items():
            measure(sae, folder / "x.npy", kind)


if __name__ == "__main__":
    main()
