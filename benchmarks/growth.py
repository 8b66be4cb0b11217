"""How the time to encode grows with d_sae, d_in and k: `load`'s own choice over the dense product in onnxruntime.

Weights are random unit rows and activations sums of some of them with noise: what matters here is sizes. Drawn as a
picture with --plot. With --graphs: which of the two exact graphs is quicker at which size.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from encode import dense
from numpy.typing import NDArray
from timing import median_seconds

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.graphs import ENCODE, EXACT
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports import export

ROWS = (1, 16, 256, 1024)  # tokens of a call: steering, serving, extraction

# d_in, d_sae, k
SIZES = (
    *((768, d_sae, 32) for d_sae in (4_096, 8_192, 16_384, 24_576, 49_152, 98_304, 131_072)),
    *((d_in, 24_576, 32) for d_in in (256, 1_536, 3_072)),
    *((768, 24_576, k) for k in (8, 16, 64, 128)),
)

GRAPH_SIZES = (
    *((d_in, d_sae, 32) for d_in in (384, 768) for d_sae in (1_536, 3_072, 6_144, 12_288, 24_576)),
    *((768, d_sae, k) for k in (8, 128) for d_sae in (6_144, 24_576)),
)


def make(
    path: Path, d_in: int, d_sae: int, k: int, rng: np.random.Generator, *, selection: str = "topk"
) -> NDArray[np.float32]:
    """An exported bundle of token or mutual choice (selection "threshold"), and activations [1024, d_in] for it."""
    decoder = rng.standard_normal((d_sae, d_in), np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    x = rng.normal(0, 0.2 * d_in**-0.5, (4 * d_in + 1024, d_in)).astype(np.float32)
    for _ in range(k):
        x += rng.gamma(2.0, 0.5, (len(x), 1)).astype(np.float32) * decoder[rng.integers(0, d_sae, len(x))]
    weights = {
        "W_enc": np.ascontiguousarray(decoder.T),
        "W_dec": decoder,
        "b_enc": np.full(d_sae, -0.3, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    kind, slots = "token", k
    if selection == "threshold":
        z = x[-512:] @ weights["W_enc"] + weights["b_enc"]
        threshold = max(float(np.partition(z, -512 * k, axis=None)[-512 * k]), 0.0)
        weights["threshold"] = np.full(d_sae, threshold, np.float32)
        kind, slots = "mutual", int(np.quantile((z > threshold).sum(axis=1), 0.999))
    architecture = Architecture(d_in=d_in, d_sae=d_sae, selection=selection, k=k if selection == "topk" else None)
    manifest = Manifest(architecture=architecture, allocation=Allocation(kind=kind, k=float(k)), slots=slots)
    bundle.write(path, weights, manifest, sample=x[1024:][:4096])
    export(path, graphs=("exact",))
    return x[:1024]


@click.command()
@click.option("--n", default=1024, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--graphs", is_flag=True, help="encode_exact.onnx over encode.onnx")
def main(n: int, rounds: int, plot: Path | None, graphs: bool) -> None:
    """Print a row for each size."""
    if graphs:
        compare_graphs(rounds)
        return
    found: dict[tuple[int, int, int], tuple[float, float]] = {}
    print("| d_in | d_sae | k | exact, ms | dense product, ms | ratio | graph | encoded again |")
    print("|---" * 8 + "|")
    for d_in, d_sae, k in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sae"
            x = make(path, d_in, d_sae, k, np.random.default_rng(0))[:n]
            sae = load(path)
            runs: dict[str, Callable[[], object]] = {
                "exact": partial(sae.encode, x),
                "dense": partial(dense(bundle.read(path)), x),
            }
            median = median_seconds(runs, rounds)
            exact, product = median["exact"] * 1e3, median["dense"] * 1e3
            graph, (again, of) = sae.graph, sae.redone
        found[d_in, d_sae, k] = exact, product
        print(
            f"| {d_in:,} | {d_sae:,} | {k} | {exact:.1f} | {product:.1f} | {exact / product:.2f} | {graph} | "
            f"{again / max(of, 1):.2%} |",
            flush=True,
        )
    if plot is not None:
        draw(found, n, plot)


def compare_graphs(rounds: int) -> None:
    """Time of encode_exact.onnx over encode.onnx, medians of several timings, and how often its sum was the smaller."""
    sizes = " | ".join(f"{n:,}" for n in ROWS)
    print(
        f"| d_in | d_sae | k | log2 of d_in d_sae | selection | {sizes} | sums, exact : encode.onnx | exact quicker |"
    )
    print("|---" * (7 + len(ROWS)) + "|")
    for d_in, d_sae, k in GRAPH_SIZES:
        for selection in ("topk", "threshold"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "sae"
                x = make(path, d_in, d_sae, k, np.random.default_rng(0), selection=selection)
                saes = [load(path, graph=graph) for graph in (EXACT.file, ENCODE.file)]
                seconds = np.array([times_of([sae.encode for sae in saes], x) for _ in range(rounds)])
            ratios = np.median(seconds[:, 0] / seconds[:, 1], axis=0)
            sums = (seconds / seconds.min(axis=1, keepdims=True)).sum(axis=2)
            total, quicker = np.median(sums, axis=0), int((sums[:, 0] < sums[:, 1]).sum())
            print(
                f"| {d_in} | {d_sae:,} | {k} | {np.log2(d_in * d_sae):.1f} | {selection} | "
                f"{' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {total[0]:.2f} : {total[1]:.2f} | "
                f"{quicker} of {rounds} |",
                flush=True,
            )


def times_of(
    runs: list[Callable[[NDArray[np.float32]], object]], x: NDArray[np.float32], *, least: int = 5, limit: float = 1.5
) -> list[list[float]]:
    """Median seconds of each run for as many tokens as each of ROWS, in turn.

    Of two calls in a row the second counts, since a server of one graph finds its weights in the cache.
    """
    medians: list[list[float]] = [[] for _ in runs]
    for rows in ROWS:
        times: list[list[float]] = [[] for _ in runs]
        begin = time.perf_counter()
        while len(times[0]) < least or (time.perf_counter() - begin < limit and len(times[0]) < 100):
            part = x.take(np.arange(rows) + len(times[0]) * rows, axis=0, mode="wrap")
            for run, took in zip(runs, times, strict=True):
                run(part)
                start = time.perf_counter()
                run(part)
                took.append(time.perf_counter() - start)
        for of_run, took in zip(medians, times, strict=True):
            of_run.append(statistics.median(took))
    return medians


def draw(found: dict[tuple[int, int, int], tuple[float, float]], n: int, path: Path) -> None:
    """Time over the dense product's against each of the three sizes, the others as in most rows.

    Each was timed in turn with its own product: a machine whose speed changes from row to row changes both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    usual = (768, 24_576, 32)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, (number, name) in zip(figure.subplots(1, 3, sharey=True), enumerate(("d_in", "d_sae", "k")), strict=True):
        sizes = sorted(size for size in found if all(size[i] == usual[i] for i in range(3) if i != number))
        axis.plot([size[number] for size in sizes], [found[size][0] / found[size][1] for size in sizes], "o-")
        axis.axhline(1, color="gray", linewidth=1)
        axis.set(xlabel=name, xscale="log", yscale="log")
        axis.set_xticks([size[number] for size in sizes], [f"{size[number]:,}" for size in sizes], rotation=60)
        axis.set_yticks([0.4, 0.6, 0.8, 1, 1.5])
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"exact / dense product\n{n:,} tokens")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
