"""Encode to sparse features: precision "exact" against the dense product in onnxruntime, and against the peers.

Weights are trained and activations real (wide.py). All run in this process in turn; a cell is the median of several
rounds. Peers give what they give: SAELens and dictionary_learning dense arrays, sparsify the top k.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
import torch
import wide
from joint import dictionary_learning
from numpy.typing import NDArray
from timing import median_seconds
from torch import Tensor

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.folder import Bundle
from sae_runtime.engine.sessions import open_session
from sae_runtime.exports.graphs.encode import pre_activations
from sae_runtime.exports.graphs.graph import Graph

Run = Callable[[NDArray[np.float32]], object]


def dense(read: Bundle) -> Run:
    """The dense product in onnxruntime, without a selection: what any exporter would start from."""
    graph = Graph("dense")
    x = graph.input("x", np.float32, ["n", read.manifest.architecture.d_in])
    graph.output(pre_activations(graph, read, x), "z", np.float32, ["n", read.manifest.architecture.d_sae])
    path = read.path / "dense.onnx"
    with new_file(path, force=True) as partial_file:
        ir.save(graph.model(), partial_file)
    session = open_session(path)
    return lambda x: session.run(None, {"x": x})


def sparsify(read: Bundle) -> Callable[[Tensor], object]:
    """EleutherAI's encoder with the bundle's weights."""
    from sparsify import SparseCoder, SparseCoderConfig

    architecture = read.manifest.architecture
    sae = SparseCoder(
        architecture.d_in, SparseCoderConfig(num_latents=architecture.d_sae, k=int(read.manifest.batch_allocation.k))
    )
    sae.encoder.weight.data = torch.from_numpy(np.ascontiguousarray(read.tensor("W_enc").T))
    sae.encoder.bias.data = torch.from_numpy(np.array(read.tensor("b_enc")))
    sae.b_dec.data = torch.from_numpy(np.array(read.tensor("b_dec")))
    encode: Callable[[Tensor], object] = sae.encode
    return encode


def contenders(path: Path, *, peers: bool) -> dict[str, Run]:
    """What encodes rows [n, d_in] with the weights of a bundle; ours first, then the dense product, then the peers."""
    read = bundle.read(path)
    runs: dict[str, Run] = {
        "exact": load(path).encode,
        "float32": load(path, graph="encode.onnx").encode,
        "dense product": dense(read),
    }
    if not peers:
        return runs
    import sae_lens

    weights = {name: np.array(read.tensor(name)) for name in read.specs}
    theirs: dict[str, Callable[[Tensor], object]] = {"SAELens": sae_lens.SAE.load_from_disk(path).encode}
    if read.manifest.batch_allocation.kind == "token":
        theirs["sparsify"] = sparsify(read)
    else:
        theirs["dictionary_learning"] = dictionary_learning(weights, int(read.manifest.batch_allocation.k))
    for name, encode in theirs.items():
        runs[name] = partial(_by_torch, encode)
    return runs


@torch.inference_mode()
def _by_torch(encode: Callable[[Tensor], object], x: NDArray[np.float32]) -> object:
    return encode(torch.from_numpy(x))


def print_table(runs: dict[str, Run], x: NDArray[np.float32], tokens: tuple[int, ...], rounds: int) -> None:
    """Milliseconds for each number of tokens, and how often faster than the others "exact" is."""
    print("| tokens | " + " | ".join(runs) + " | exact / dense | peers / exact |\n" + "|---" * (len(runs) + 3) + "|")
    for n in tokens:
        some = np.ascontiguousarray(np.resize(x, (n, x.shape[1])))
        # A dense array of that many tokens fits nowhere: its owners get them by the thousand.
        parts = [some[begin : begin + 1024] for begin in range(0, n, 1024)]
        median = median_seconds(
            {
                name: partial(run, some) if name in ("exact", "float32") else partial(_each, run, parts)
                for name, run in runs.items()
            },
            rounds if n <= 1024 else max(rounds // 3, 1),
        )
        ms = " | ".join(f"{median[name] * 1e3:.2f}" for name in runs)
        peers = [median[name] / median["exact"] for name in list(runs)[3:]]
        print(f"| {n:,} | {ms} | {median['exact'] / median['dense product']:.2f} | ", end="")
        print(", ".join(f"{ratio:.2f}" for ratio in peers) + " |", flush=True)


def _each(run: Run, parts: list[NDArray[np.float32]]) -> None:
    for part in parts:
        run(part)


@click.command()
@wide.text_option
@wide.cache_option
@click.option("--d-sae", default=24_576, show_default=True)
@click.option("--steps", default=1000, type=click.IntRange(min=1), show_default=True)
@click.option("--rounds", default=9, type=click.IntRange(min=1), show_default=True)
@click.option("--tokens", default=(1, 16, 1024, 16_384), multiple=True, show_default=True)
@click.option("--peers/--no-peers", default=True)
def main(text: Path, cache: Path, d_sae: int, steps: int, rounds: int, tokens: tuple[int, ...], peers: bool) -> None:
    """Print a table for token choice and one for mutual choice."""
    warnings.simplefilter("ignore")
    x = wide.sample(cache, text, 1024)
    x = x[np.random.default_rng(1).permutation(len(x))]
    for kind in ("token", "mutual"):
        path = wide.bundle(cache, text, kind=kind, d_sae=d_sae, steps=steps)
        runs = contenders(path, peers=peers)
        print(f"\n{kind} choice, d_in {x.shape[1]}, d_sae {d_sae:,}, k 32, {torch.get_num_threads()} threads\n")
        print_table(runs, x, tokens, rounds)


if __name__ == "__main__":
    main()
