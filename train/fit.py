"""Fit SAEs on activations, from the first batch to the bundles."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime import bundle, files
from sae_runtime.activations import Activations, Shard, open_activations, sample_rows
from sae_runtime.extras import require
from sae_runtime.manifest import Manifest
from sae_runtime.rows import as_float32
from sae_runtime.train.batches import Batches
from sae_runtime.train.checkpoint import Keeper
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.data import Source, StoredRows, centre_and_scale, generator, split
from sae_runtime.train.device import memory_errors
from sae_runtime.train.finish import finished
from sae_runtime.train.harvest import HarvestConfig
from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.outputs import Options, check_outputs
from sae_runtime.train.progress import reported
from sae_runtime.train.recipe import derive
from sae_runtime.train.stream import StreamedRows
from sae_runtime.train.trainer import StepStats, Trainer
from sae_runtime.train.world import World, joined

Data = Activations | NDArray[Any] | str | Path | HarvestConfig
Made = dict[str, tuple[dict[str, NDArray[np.float32]], Manifest]]
Write = Callable[[Made, NDArray[np.float32]], None]  # takes the bundles by name, and the sample of all

_COMMON = ("seed", "tokens", "batch", "holdout", "pool", "device")  # what decides the batches


def fit(
    activations: Data, out: str | Path, config: TrainConfig, *, force: bool = False, **options: Unpack[Options]
) -> Manifest:
    """Fit an SAE and write it as a bundle, not exported yet.

    Args:
        activations: a path that `open_activations` takes, what it gives, an array [n, d_in], or what harvest would
            read, whose activations are then computed as they are needed and never stored.
        out: the bundle's folder.
        config: what to fit.
        force: replace a bundle, a file of metrics and a checkpoint that stand there already.
        options: what else the run writes and shows; see `outputs.Options`.

    Returns:
        The manifest of the bundle.

    Raises:
        ValueError: the activations are too few, not finite or all equal, the device is not usable, or the loss
            stopped being finite.
        FileExistsError: `out` exists and `force` is not set, or `metrics`, `tensorboard` or `checkpoint` exists and
            neither `force` nor `resume` is.
        ImportError: `tensorboard` is given and not installed.
        MemoryError: the SAE or a batch does not fit on the device.
    """
    out = Path(out)

    def write(made: Made, sample: NDArray[np.float32]) -> None:
        ((weights, manifest),) = made.values()
        bundle.write(out, weights, manifest, sample=sample, force=force)

    check_outputs(out, options, force=force)
    _fit(activations, {"sae": config}, write, **options)
    return bundle.read(out).manifest


def fit_many(
    activations: Data,
    out: str | Path,
    configs: Mapping[str, TrainConfig],
    *,
    force: bool = False,
    **options: Unpack[Options],
) -> dict[str, Manifest]:
    """Fit several SAEs in one pass over the activations, each as `fit` fits it alone.

    Args:
        activations: as for `fit`.
        out: a folder that will hold one bundle for each name.
        configs: what to fit, by name; seed, tokens, batch, holdout, pool and device must be the same in all.
        force: as for `fit`; replaces all of `out`.
        options: as for `fit`; of what is written and shown there is one for all.

    Returns:
        The manifests by name.

    Raises:
        ValueError: as for `fit`, and where a name is no folder's name or the configs differ in what must be the same.
        FileExistsError: as for `fit`.
        ImportError: as for `fit`.
        MemoryError: as for `fit`.
    """
    out = Path(out)
    _check_together(configs)

    def write(made: Made, sample: NDArray[np.float32]) -> None:
        with files.new_folder(out, force=force) as folder:
            for name, (weights, manifest) in made.items():
                bundle.write(folder / name, weights, manifest, sample=sample)

    check_outputs(out, options, force=force)
    _fit(activations, configs, write, **options)
    return {name: bundle.read(out / name).manifest for name in configs}


@memory_errors()
def _fit(
    activations: Data,
    configs: Mapping[str, TrainConfig],
    write: Write,
    *,
    metrics: Path | None = None,
    tensorboard: Path | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 300.0,
    resume: bool = False,
    progress: bool = False,
) -> None:
    """Fit SAEs by name, and write them when all are done: the first process does, where there are several."""
    common = next(iter(configs.values()))
    with joined(common.device) as (world, device):
        if common.batch % world.size:
            raise ValueError(
                f"batch must be a multiple of the {world.size} processes that share it, got {common.batch}"
            )
        if world.rank:
            checkpoint_seconds, metrics, tensorboard, progress = math.inf, None, None, False
        if tensorboard is not None:
            require("tensorboard")
        source = _source(activations, common)
        mean, scale = centre_and_scale(source.sample(generator(common.seed, "scale")), source.path)
        trainers = {}
        for name, config in configs.items():
            with _named(name, configs):
                trainers[name] = _trainer(mean * np.float32(scale), config, device, world)
        steps = next(iter(trainers.values())).recipe.steps
        with Batches(source, common.batch, common.seed, scale=scale, device=device, world=world) as batches:
            keeper = Keeper(checkpoint, checkpoint_seconds, trainers, batches, processes=world.size)
            if resume:
                keeper.restore()
            elif world.rank == 0:
                keeper.remove()
            done = next(iter(trainers.values())).step_number
            if world.count(done) != done * world.size:
                raise ValueError(f"not all processes see the checkpoint {checkpoint}; put it where they do")
            with reported(trainers, metrics, tensorboard, progress) as report:
                for step in range(done, steps):
                    x = batches.next(steps - step)
                    with keeper.guarding():
                        report({name: _step(name, trainer, x, configs) for name, trainer in trainers.items()})
                    keeper.save_if_due()
            if world.rank == 0:
                keeper.save()
        if world.rank == 0:
            held_out = _scaled(source, scale, device)
            made: Made = {}
            for name, trainer in trainers.items():
                with _named(name, configs):
                    made[name] = finished(trainer, source, held_out, scale, processes=world.size)
            write(made, _sample(source))
            keeper.remove()
        world.wait()


def _step(name: str, trainer: Trainer, x: torch.Tensor, names: Mapping[str, object]) -> StepStats:
    with _named(name, names):
        return trainer.step(x)


@contextmanager
def _named(name: str, names: Mapping[str, object]) -> Iterator[None]:
    """Where there are several SAEs, let errors within the block say of which they are."""
    try:
        with memory_errors():
            yield
    except (ValueError, MemoryError) as error:
        if len(names) == 1:
            raise
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        raise kind(f"{name}: {error}") from error


def _source(activations: Data, config: TrainConfig) -> Source:
    pool = config.pool * 2**20  # bytes
    if isinstance(activations, HarvestConfig):
        return StreamedRows(activations, config.holdout, config.seed, pool)
    if isinstance(activations, str | Path):
        activations = open_activations(activations)
    elif not isinstance(activations, Activations):
        x = as_float32(activations)
        if x.ndim != 2 or x.shape[1] < 1:
            raise ValueError(f"activations must be [n, d_in], got {list(x.shape)}; reshape them")
        activations = Activations(Path("array"), [Shard(x)])
    parts = split(activations, config.holdout, config.seed)
    return StoredRows(activations, parts, int(pool / (4 * activations.d_in)))


def _trainer(centre: NDArray[np.float32], config: TrainConfig, device: torch.device, world: World) -> Trainer:
    weights = torch.Generator().manual_seed(int(generator(config.seed, "weights").integers(2**62)))
    model = SparseAutoencoder(config.d_sae, torch.from_numpy(centre), generator=weights).to(device)
    return Trainer(model, config, derive(config, len(centre)), rng=generator(config.seed, "trainer"), world=world)


def _scaled(source: Source, scale: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    calibration, validation = (torch.from_numpy(x).to(device) * scale for x in source.held_out())
    return calibration, validation


def _sample(source: Source) -> NDArray[np.float32]:
    """Some of the activations that calibrated the threshold, from all over, [m, d_in]."""
    x = source.held_out()[0]
    sample: NDArray[np.float32] = x[sample_rows(len(x), source.d_in)]
    return sample


def _check_together(configs: Mapping[str, TrainConfig]) -> None:
    """Raise unless the SAEs can take the same batches and have names to write them under."""
    if not configs:
        raise ValueError("there is nothing to fit; give one config at least")
    for name in configs:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a folder; rename that SAE")
    first, *others = configs.items()
    for name, config in others:
        for field in _COMMON:
            mine, theirs = getattr(config, field), getattr(first[1], field)
            if mine != theirs:
                raise ValueError(
                    f"SAEs of one pass share {field}, got {theirs!r} for {first[0]} and {mine!r} for {name}; "
                    "make them equal, or fit them one by one"
                )
