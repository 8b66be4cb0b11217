"""What each of several gloo processes does for tests/train/test_world.py, which starts this file as torchrun would.

Every process holds the same whole batches, fits on its part of them, and writes what came out.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_runtime.train.config import TrainConfig
from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.recipe import derive
from sae_runtime.train.selection import select
from sae_runtime.train.trainer import Trainer
from sae_runtime.train.world import World, joined

D_IN, D_SAE, BATCH, STEPS = 16, 192, 64, 40
ALLOCATIONS = ("token", "mutual", "feature")


def latents() -> Tensor:
    """Latents [BATCH, D_SAE] whose largest all lie in the first rows, so that no process holds an equal share."""
    z = torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(3))
    z[: BATCH // 8] += 3
    return z


def selections(z: Tensor, world: World) -> dict[str, Tensor]:
    """Positions in the flattened part z [n, D_SAE] of what wins under several limits."""
    few = torch.arange(D_SAE) % 4
    found = {
        "total": select(z, total=5 * BATCH, world=world),
        "nothing": select(z, total=0, world=world),
        "everything": select(z, total=BATCH * D_SAE, world=world),
        "caps": select(z, total=3 * BATCH, per_feature=few, world=world),
        "all caps": select(z, total=BATCH * D_SAE, per_feature=few, world=world),
        "nominated": select(z.bfloat16(), total=5 * BATCH, world=world, exact=lambda at: z.view(-1)[at]),
    }
    return {name: at for name, (at, _) in found.items()}


def fitted(allocation: str, world: World) -> dict[str, Tensor]:
    """Weights after STEPS steps on this process's part of every batch, and the matches of the first by feature."""
    config = TrainConfig(
        allocation=allocation, k=4, d_sae=D_SAE, tokens=BATCH * STEPS, batch=BATCH, warmup_share=0.5, dead_tokens=256
    )
    model = SparseAutoencoder(D_SAE, torch.zeros(D_IN), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, config, derive(config, D_IN), rng=np.random.default_rng(0), world=world)
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(24, D_IN, generator=generator)
    counts = torch.empty(0)
    for step in range(STEPS):
        x = (torch.rand(BATCH, 24, generator=generator) < 0.1).float() @ basis
        x += 0.1 * torch.randn(BATCH, D_IN, generator=generator)
        trainer.step(x.chunk(world.size)[world.rank])
        if step == 0:
            counts = trainer.tracker.silent_tokens == 0
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return {**parameters, "fired at the first step": counts, "density": trainer.tracker.density}


if __name__ == "__main__":
    with joined("cpu") as (world, _):
        result = {"selections": selections(latents().chunk(world.size)[world.rank].contiguous(), world)}
        result |= {allocation: fitted(allocation, world) for allocation in ALLOCATIONS}
        torch.save(result, Path(sys.argv[1]) / f"{world.rank}.pt")
