"""One training step against the forward product and the peers' own steps, on the same batches.

All run in this process in turn; a row is the median of several rounds. Ours has everything a run has: selection,
decoder upkeep, clipping, fused Adam, density statistics, and an auxiliary loss over a fiftieth of the features.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from peers import dictionary_learning_batch_topk, sae_lens_batch_topk, sparsify_topk
from torch import Tensor

from sae_runtime.train import TrainConfig
from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.recipe import derive
from sae_runtime.train.trainer import Trainer


def our_step(d_in: int, d_sae: int, k: int, n: int, allocation: str, **settings: Any) -> Callable[[Tensor], object]:
    """A step of a run in which a fiftieth of the features is under-used."""
    config = TrainConfig(
        allocation=allocation, k=k, d_sae=d_sae, tokens=n * 10_000, batch=n, lr=1e-4, device="cpu", **settings
    )
    model = SparseAutoencoder(d_sae, torch.zeros(d_in), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, config, derive(config, d_in), rng=np.random.default_rng(0))
    trainer.tracker.silent_tokens[::50] = 1 << 40

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.tracker.silent_tokens[::50] = 1 << 40

    return step


@click.command()
@click.option("--d-in", default=768)
@click.option("--d-sae", default=24_576)
@click.option("--k", default=32)
@click.option("--n", default=1024)
@click.option("--rounds", default=7)
@click.option("--peers/--no-peers", default=True)
def main(d_in: int, d_sae: int, k: int, n: int, rounds: int, peers: bool) -> None:
    """Print one row for each library."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = SparseAutoencoder(d_sae, torch.zeros(d_in), generator=torch.Generator().manual_seed(0))
    product = torch.empty(n, d_sae)
    steps: dict[str, Callable[[Tensor], object]] = {
        "forward product": lambda x: torch.mm(x, model.W_enc.detach().T, out=product),
        "mutual choice": our_step(d_in, d_sae, k, n, "mutual"),
        "feature choice": our_step(d_in, d_sae, k, n, "feature", exponent=1.0, offset=50.0),
    }
    if peers:
        steps["sparsify TopK"] = sparsify_topk(d_in, d_sae, k, 1e-4)
        steps["SAELens BatchTopK"] = sae_lens_batch_topk(d_in, d_sae, k, 1e-4)
        steps["dictionary_learning BatchTopK"] = dictionary_learning_batch_topk(d_in, d_sae, k, 1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    batches = [torch.randn(n, d_in) for _ in range(4)]
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batches[number % 4])
            if number > 1:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"one step, d_in {d_in}, d_sae {d_sae}, k {k}, n {n}, fp32, {torch.get_num_threads()} threads, CPU")
    print(f"{'':<30}  {'ms':>8}  {'in products':>11}  {'over mutual':>11}")
    for name, value in median.items():
        products, over = value / median["forward product"], value / median["mutual choice"]
        print(f"{name:<30}  {value * 1e3:>8.0f}  {products:>11.2f}  {over:>11.2f}")


if __name__ == "__main__":
    main()
