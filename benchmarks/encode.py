"""Encode to sparse features: onnxruntime through our graphs against SAELens, on the same weights and activations.

Both run in this process in turn; a row is the median of several rounds, and the ratio is peer / ours. Random unit
decoder rows and activations stand in for a fitted SAE: the work of either does not depend on them.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime import bundle, load
from sae_runtime.exports import export
from sae_runtime.manifest import Allocation, Encoder, Manifest


def make_bundle(path: Path, d_in: int, d_sae: int, k: int, rng: np.random.Generator) -> None:
    """A token choice bundle with random weights, which SAELens reads too."""
    decoder = rng.standard_normal((d_sae, d_in), np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    weights: dict[str, NDArray[np.float32]] = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": np.zeros(d_sae, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    encoder = Encoder(d_in=d_in, d_sae=d_sae, selection="topk", k=k)
    bundle.write(path, weights, Manifest(encoder=encoder, allocation=Allocation(kind="token", k=float(k)), width=k))
    export(path)


def median_seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each run, taken in turn after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@click.command()
@click.option("--d-in", default=768)
@click.option("--d-sae", default=24_576)
@click.option("--k", default=32)
@click.option("--rounds", default=7)
def main(d_in: int, d_sae: int, k: int, rounds: int) -> None:
    """Print one row for each number of tokens."""
    warnings.simplefilter("ignore")
    import sae_lens

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        make_bundle(Path(folder) / "sae", d_in, d_sae, k, rng)
        ours = load(Path(folder) / "sae")
        peer = sae_lens.SAE.load_from_disk(Path(folder) / "sae")
        print(f"token choice, d_in {d_in}, d_sae {d_sae}, k {k}, {torch.get_num_threads()} threads")
        print(f"{'tokens':>8}  {'ours, ms':>9}  {'SAELens, ms':>11}  {'ratio':>6}")
        for n in (1, 16, 1024):
            x = rng.standard_normal((n, d_in), np.float32)
            tensor = torch.from_numpy(x)
            with torch.inference_mode():
                median = median_seconds({"ours": partial(ours.encode, x), "peer": partial(peer.encode, tensor)}, rounds)
            ratio = median["peer"] / median["ours"]
            print(f"{n:>8}  {median['ours'] * 1e3:>9.2f}  {median['peer'] * 1e3:>11.2f}  {ratio:>6.2f}")


if __name__ == "__main__":
    main()
