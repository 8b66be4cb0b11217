"""A run, from the first batch to the weights and manifests of its SAEs."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.activations.left_out import warn_of_many
from sae_runtime.activations.stored import Activations, Shard, open_activations, sample_rows
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.stats import Stats
from sae_runtime.core.arrays import as_float32
from sae_runtime.train.batches import Batches
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.device import ask_for_huge_pages, memory_errors
from sae_runtime.train.divided import divided
from sae_runtime.train.finish import finished
from sae_runtime.train.harvest.config import HarvestConfig, refuse_other_settings
from sae_runtime.train.harvest.stream import StreamedRows
from sae_runtime.train.progress import reported
from sae_runtime.train.recipe import derive
from sae_runtime.train.run_options import Options
from sae_runtime.train.run_state import Keeper, only_run
from sae_runtime.train.source import SCALE_SAMPLE, Source, centre_and_scale, generator
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.stored_rows import StoredRows
from sae_runtime.train.trainer import Trainer
from sae_runtime.train.world import World, joined

Data = Activations | NDArray[Any] | str | Path | HarvestConfig | Mapping[str, HarvestConfig] | Source
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Fitted:
    """The results of a run: weights, manifest and stats of each SAE by its name, and activations for the bundles."""

    saes: Mapping[str, tuple[dict[str, NDArray[np.float32]], Manifest, Stats]]
    samples: Mapping[str, NDArray[np.float32]]  # [m, d_in] of each SAE


@dataclass(frozen=True)
class _Hook:
    """One of the hooks that share a pass: its number, its columns of the rows, and what its SAEs begin with."""

    number: int
    columns: slice
    mean: NDArray[np.float32]
    scale: float

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, self.columns].contiguous()


def names_of(activations: Data, configs: Mapping[str, TrainConfig]) -> dict[str, tuple[TrainConfig, int]]:
    """The config of each SAE and the number of its hook, by the SAE's name.

    >>> from sae_runtime.train.harvest.config import for_hooks
    >>> harvests = for_hooks(["h.3", "h.6"], model="gpt2", text=(Path("notes.txt"),))
    >>> configs = {f"k{k}": TrainConfig(k=k, tokens=10**6) for k in (16, 32)}
    >>> list(names_of(harvests, configs)), list(names_of(harvests, {"k16": configs["k16"]}))
    (['h.3-k16', 'h.3-k32', 'h.6-k16', 'h.6-k32'], ['h.3', 'h.6'])
    """
    if not isinstance(activations, Mapping):
        return {name: (config, 0) for name, config in configs.items()}
    return {
        f"{hook}-{name}" if len(configs) > 1 else hook: (config, number)
        for number, hook in enumerate(activations)
        for name, config in configs.items()
    }


@contextmanager
def fitted(activations: Data, configs: Mapping[str, TrainConfig], options: Options) -> Iterator[Fitted | None]:
    """Fit SAEs for a block that writes them; all processes but the first get None.

    After the block the run state is removed. The other processes wait for that, so that they find the bundles.

    Args:
        activations: as for `fit`.
        configs: the settings by the names of the SAEs, which share their batches.
        options: as for `fit`.

    Raises:
        ValueError: as for `fit`; if there are several SAEs, the message names the one that failed.
        MemoryError: as for `fit`.
    """
    ask_for_huge_pages()
    common, run_state = next(iter(configs.values())), options.get("run_state")
    with memory_errors(), joined(common.device) as (world, device), ExitStack() as stack:
        world.part(common.batch)  # raises before any work
        is_first = world.rank == 0
        stack.enter_context(only_run(run_state if is_first else None))
        source = opened(activations, common, progress=is_first and bool(options.get("progress")))
        sample = source.sample(generator(common.seed, "scale"))
        hooks = [
            _Hook(number, columns, *centre_and_scale(sample[:, columns], source.path))
            for number, (_, columns) in enumerate(source.hooks())
        ]
        del sample
        scale = np.concatenate([np.full(len(hook.mean), hook.scale, np.float32) for hook in hooks])
        if is_first and source.left_out is not None:
            warn_of_many(source.share_left_out, source.left_out.norm_multiple, source.path)
        named = names_of(activations, configs)
        hook_of = {name: hooks[number] for name, (_, number) in named.items()}
        trainers = _for_each(named, lambda one: _trainer(hooks[one[1]], one[0], device, world))
        with Batches(source, common.batch, common.seed, scale=scale, device=device, world=world) as batches:
            seconds = options.get("run_state_seconds", 300.0) if is_first else math.inf
            keeper = Keeper(run_state, seconds, trainers, batches, processes=world.size)
            if options.get("resume"):
                keeper.restore()
                if is_first and any(options.get(name) is not None for name in ("metrics", "tensorboard")):
                    keeper.begin()
            elif is_first:
                keeper.remove()
            _check_same_step(trainers, run_state, world)
            with reported(trainers, options if is_first else {}) as report:
                first = next(iter(trainers.values()))
                for left in range(first.recipe.steps - first.step_number, 0, -1):
                    x = batches.next(left)
                    parts = {name: (trainer, hook_of[name].part(x)) for name, trainer in trainers.items()}
                    with keeper.guarding():
                        report(_for_each(parts, lambda part: part[0].step(part[1])))
                    keeper.save_if_due()
            if is_first:
                keeper.save()
        yield _finished(source, trainers, hook_of, scale, device, world) if is_first else None
        if is_first:
            keeper.remove_finished()
        world.wait()


def opened(activations: Data, config: TrainConfig, *, progress: bool = False) -> Source:
    """The source of a run's training rows.

    Raises:
        ValueError: the activations are too few to hold some out, are not a matrix, or hold NaN or Inf.

    >>> x = np.random.default_rng(0).standard_normal((300, 8))
    >>> opened(x, TrainConfig(tokens=4096)).provenance["rows"]
    {'train': 270, 'calibration': 15, 'validation': 15, 'gaps': 0}
    """
    if isinstance(activations, Source):
        return activations
    pool = config.pool * 2**20  # bytes
    if isinstance(activations, HarvestConfig):
        activations = {"": activations}
    elif isinstance(activations, Mapping):
        refuse_other_settings(activations)
    if isinstance(activations, Mapping):
        first, hooks = next(iter(activations.values())), [one.hook for one in activations.values()]
        return StreamedRows(first, config.holdout, config.seed, pool, config.max_norm, hooks)
    if isinstance(activations, str | Path):
        activations = open_activations(activations)
    elif not isinstance(activations, Activations):
        x = as_float32(activations)
        if x.ndim != 2 or x.shape[1] < 1:
            raise ValueError(f"activations must be [n, d_in], got {list(x.shape)}; reshape them")
        activations = Activations(Path("array"), [Shard(x)])
    parts, left_out = divided(activations, config.holdout, config.seed, config.max_norm, progress=progress)
    return StoredRows(activations, parts, int(pool / (4 * activations.d_in)), left_out)


def _for_each(items: Mapping[str, T], function: Callable[[T], R]) -> dict[str, R]:
    """The function's result for each SAE. If there are several SAEs, an error names the one that failed."""
    results = {}
    for name, item in items.items():
        try:
            with memory_errors():
                results[name] = function(item)
        except (ValueError, MemoryError) as error:
            if len(items) == 1:
                raise
            kind = MemoryError if isinstance(error, MemoryError) else ValueError
            raise kind(f"{name}: {error}") from error
    return results


def _trainer(hook: _Hook, config: TrainConfig, device: torch.device, world: World) -> Trainer:
    centre = hook.mean * np.float32(hook.scale)
    recipe = derive(config, len(centre))
    weights = torch.Generator().manual_seed(int(generator(config.seed, "weights").integers(2**62)))
    model = SparseAutoencoder(recipe.d_sae, torch.from_numpy(centre), generator=weights).to(device)
    return Trainer(model, config, recipe, rng=generator(config.seed, "trainer"), world=world)


def _check_same_step(trainers: Mapping[str, Trainer], run_state: Path | None, world: World) -> None:
    step = next(iter(trainers.values())).step_number
    if world.count(step) != step * world.size:
        raise ValueError(f"some processes do not see the run state {run_state}; put it on a disk that all share")


def _finished(
    source: Source,
    trainers: Mapping[str, Trainer],
    hook_of: Mapping[str, _Hook],
    scale: NDArray[np.float32],
    device: torch.device,
    world: World,
) -> Fitted:
    """Calibrate and measure the SAEs on the held-out rows, which are read once."""
    calibration, validation = source.held_out()
    ordinary = len(calibration) - source.left_out_of("calibration")
    # The samples are copies, so that they do not keep the whole calibration part in memory.
    samples = {
        name: calibration[sample_rows(ordinary, len(hook.mean))][:, hook.columns] for name, hook in hook_of.items()
    }
    factor = torch.from_numpy(scale).to(device)
    held_out = torch.from_numpy(calibration).to(device) * factor, torch.from_numpy(validation).to(device) * factor
    del calibration, validation  # else they would be in memory beside their scaled copies
    more = None
    if ordinary < SCALE_SAMPLE and any(trainer.max_density is not None for trainer in trainers.values()):
        seed = next(iter(trainers.values())).config.seed
        more = torch.from_numpy(source.sample(generator(seed, "scale"))).to(device) * factor
    alone = [one for one, _ in source.hooks()]

    def finish(name: str) -> tuple[dict[str, NDArray[np.float32]], Manifest, Stats]:
        hook = hook_of[name]
        parts = hook.part(held_out[0]), hook.part(held_out[1])
        of_hook = None if more is None else hook.part(more)
        own = alone[hook.number]
        return finished(trainers[name], own, parts, hook.scale, more=of_hook, processes=world.size)

    return Fitted(_for_each({name: name for name in trainers}, finish), samples)
