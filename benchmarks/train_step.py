"""One training step against the forward product and the peers' own steps, on the same batches.

All run in turn; a row is the median of several rounds. Ours has everything a run has: selection, decoder upkeep, fused
Adam, density statistics, and an auxiliary loss over a fiftieth of the features. A peer has a process of its own: ours
sets how the process keeps memory, which would shorten the peers' steps as well.
"""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from apart import apart
from peers import dictionary_learning_batch_topk, sae_lens_batch_topk, sparsify_topk
from timing import median_seconds
from torch import Tensor
from under_used import with_fiftieth_under_used

from sae_runtime.train import TrainConfig
from sae_runtime.train.device import ask_for_huge_pages, keep_freed_memory
from sae_runtime.train.recipe import derive
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.sparse_step import SparseStep
from sae_runtime.train.trainer import Trainer

_TICKS = (50, 100, 200, 500, 1000)  # ms


def our_step(d_in: int, d_sae: int, k: int, n: int, allocation: str, **settings: Any) -> Callable[[Tensor], object]:
    """A step of a run in which a fiftieth of the features is under-used; feature choice begins at the third."""
    config = TrainConfig(
        allocation=allocation, k=k, d_sae=d_sae, tokens=n * 10_000, batch=n, lr=1e-4, device="cpu", **settings
    )
    model = SparseAutoencoder(d_sae, torch.zeros(d_in), generator=torch.Generator().manual_seed(0))
    gradients = with_fiftieth_under_used(SparseStep())
    return Trainer(model, config, derive(config, d_in), rng=np.random.default_rng(0), gradients=gradients).step


def medians(steps: dict[str, Callable[[Tensor], object]], d_in: int, n: int, rounds: int) -> dict[str, float]:
    """Seconds of each step, in turn, each over the same batches; the first four steps do not count."""
    batches = [torch.randn(n, d_in) for _ in range(4)]
    for step in steps.values():
        for x in batches:
            step(x)

    def again(step: Callable[[Tensor], object]) -> Callable[[], object]:
        following = itertools.cycle(batches)
        return lambda: step(next(following))

    return median_seconds({name: again(step) for name, step in steps.items()}, rounds)


def our_steps(d_in: int, d_sae: int, k: int, n: int) -> dict[str, Callable[[Tensor], object]]:
    """The encoder's product alone, and whole steps."""
    weight, product = torch.randn(d_sae, d_in), torch.empty(n, d_sae)
    return {
        "forward product": lambda x: torch.mm(x, weight.T, out=product),
        "mutual choice": our_step(d_in, d_sae, k, n, "mutual"),
        "feature choice": our_step(d_in, d_sae, k, n, "feature", warmup_share=2e-4),
    }


def plot(path: Path, d_in: int, d_sae: int, k: int, n: int, rounds: int) -> None:
    """Draw milliseconds a step against d_sae and against k, and print them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    sweeps = {
        "d_sae": [(d_sae * part // 4, k) for part in (1, 2, 4, 8)],
        "k": [(d_sae, k * part // 4) for part in (1, 2, 4, 8)],
    }
    for axis, (name, points) in zip(axes, sweeps.items(), strict=True):
        rows = [medians(our_steps(d_in, features, matches, n), d_in, n, rounds) for features, matches in points]
        place = [features if name == "d_sae" else matches for features, matches in points]
        for label in rows[0]:
            times = [row[label] * 1e3 for row in rows]
            axis.plot(place, times, marker="o", label=label)
            print(f"{label:<16}", *(f"{name} {at}: {ms:.0f} ms" for at, ms in zip(place, times, strict=True)), sep="  ")
        axis.set(xlabel=name, xscale="log", yscale="log", xticks=place, xticklabels=[f"{at:,}" for at in place])
        axis.set(yticks=_TICKS, yticklabels=[f"{ms:,}" for ms in _TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a step")
    axes[0].set_title(f"k {k}", fontsize=10)
    axes[1].set_title(f"d_sae {d_sae:,}", fontsize=10)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


@click.command()
@click.option("--d-in", default=768)
@click.option("--d-sae", default=24_576)
@click.option("--k", default=32)
@click.option("--n", default=1024, type=click.IntRange(min=1))
@click.option("--rounds", default=7, type=click.IntRange(min=1))
@click.option("--peers/--no-peers", default=True)
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="only draw cost against d_sae and k into a PNG"
)
def main(d_in: int, d_sae: int, k: int, n: int, rounds: int, peers: bool, picture: Path | None) -> None:
    """Print one row for each library."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ask_for_huge_pages()
    keep_freed_memory()
    if picture is not None:
        plot(picture, d_in, d_sae, k, n, rounds)
        return
    steps = our_steps(d_in, d_sae, k, n)
    if peers:
        steps["sparsify TopK"] = apart(sparsify_topk, d_in, d_sae, k, 1e-4)
        steps["SAELens BatchTopK"] = apart(sae_lens_batch_topk, d_in, d_sae, k, 1e-4)
        steps["dictionary_learning BatchTopK"] = apart(dictionary_learning_batch_topk, d_in, d_sae, k, 1e-4)
    median = medians(steps, d_in, n, rounds)
    print(f"one step, d_in {d_in}, d_sae {d_sae}, k {k}, n {n}, fp32, {torch.get_num_threads()} threads, CPU")
    print(f"{'':<30}  {'ms':>8}  {'in products':>11}  {'over mutual':>11}")
    for name, value in median.items():
        products, over = value / median["forward product"], value / median["mutual choice"]
        print(f"{name:<30}  {value * 1e3:>8.0f}  {products:>11.2f}  {over:>11.2f}")


if __name__ == "__main__":
    main()
