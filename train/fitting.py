"""Fit SAEs on activations, from the first batch to the written bundles."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard, open_activations, sample_rows
from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.arrays import as_float32
from sae_runtime.train.batches import Batches
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.data import Source, StoredRows, centre_and_scale, generator, split
from sae_runtime.train.device import ask_for_huge_pages, memory_errors
from sae_runtime.train.finish import finished
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.stream import StreamedRows
from sae_runtime.train.progress import Report, reported
from sae_runtime.train.recipe import derive
from sae_runtime.train.run_options import Options, check_outputs
from sae_runtime.train.run_state import Keeper
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.trainer import StepStats, Trainer
from sae_runtime.train.world import World, joined

Data = Activations | NDArray[Any] | str | Path | HarvestConfig | Source

_COMMON = ("seed", "tokens", "batch", "holdout", "pool", "device")  # the settings that decide the batches


@dataclass(frozen=True)
class _Fitted:
    """What a run made."""

    saes: Mapping[str, tuple[dict[str, NDArray[np.float32]], Manifest]]  # weights and manifest by name
    sample: NDArray[np.float32]  # activations for the bundles, [m, d_in]


def fit(
    activations: Data, out: str | Path, config: TrainConfig, *, force: bool = False, **options: Unpack[Options]
) -> Manifest:
    """Fit an SAE and write it as a bundle, not exported yet.

    Args:
        activations: a path that `open_activations` takes, its result, or an array [n, d_in]. With a HarvestConfig the
            activations are computed when they are needed and never stored. A Source is used as it is.
        out: the bundle's folder.
        config: the settings.
        force: replace a bundle, a file of metrics and a run state that exist already.
        options: what else the run writes and shows; see `outputs.Options`.

    Returns:
        The manifest of the bundle.

    Raises:
        ValueError: the activations are too few, not finite or all equal, the device is not usable, or the loss
            stopped being finite.
        FileExistsError: `out` exists and `force` is not set, or `metrics`, `tensorboard` or `run_state` exists and
            neither `force` nor `resume` is.
        ImportError: `tensorboard` is given and not installed.
        MemoryError: the SAE or a batch does not fit on the device.

    >>> from tempfile import TemporaryDirectory
    >>> x = np.random.default_rng(0).standard_normal((300, 8))
    >>> with TemporaryDirectory() as folder:
    ...     manifest = fit(x, f"{folder}/sae", TrainConfig(k=2, d_sae=32, tokens=640, batch=64))
    >>> manifest.architecture.d_in, manifest.architecture.d_sae, sorted(manifest.measured)[:3]
    (8, 32, ['batch', 'batch_fvu', 'batch_l0'])
    """
    out = Path(out)
    check_outputs(out, options, force=force)
    with _fitted(activations, {"sae": config}, **options) as made:
        if made is not None:
            ((weights, manifest),) = made.saes.values()
            bundle.write(out, weights, manifest, sample=made.sample, force=force)
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
        configs: the settings by name; seed, tokens, batch, holdout, pool and device must be the same in all.
        force: as for `fit`; replaces all of `out`.
        options: as for `fit`; all SAEs share one file of each kind.

    Returns:
        The manifests by name.

    Raises:
        ValueError: as for `fit`, and where a name is not the name of a folder, or the configs differ in a
            setting that they must share.
        FileExistsError: as for `fit`.
        ImportError: as for `fit`.
        MemoryError: as for `fit`.
    """
    out = Path(out)
    _check_together(configs)
    check_outputs(out, options, force=force)
    with _fitted(activations, configs, **options) as made:
        if made is not None:
            with files.new_folder(out, force=force) as folder:
                for name, (weights, manifest) in made.saes.items():
                    bundle.write(folder / name, weights, manifest, sample=made.sample)
    return {name: bundle.read(out / name).manifest for name in configs}


@contextmanager
def _fitted(
    activations: Data,
    configs: Mapping[str, TrainConfig],
    *,
    metrics: Path | None = None,
    tensorboard: Path | None = None,
    run_state: Path | None = None,
    run_state_seconds: float = 300.0,
    resume: bool = False,
    progress: bool = False,
) -> Iterator[_Fitted | None]:
    """SAEs by name, for a block that writes them; None in all processes but the first.

    After the block the run state is removed. The other processes wait for that, so that they find the bundles.
    """
    ask_for_huge_pages()
    common = next(iter(configs.values()))
    with memory_errors(), joined(common.device) as (world, device):
        world.part(common.batch)  # raises before any work
        if world.rank:
            run_state_seconds, metrics, tensorboard, progress = math.inf, None, None, False
        if tensorboard is not None:
            require("tensorboard")
        source = _source(activations, common)
        mean, scale = centre_and_scale(source.sample(generator(common.seed, "scale")), source.path)
        trainers = {}
        for name, config in configs.items():
            with _named(name, configs):
                trainers[name] = _trainer(mean * np.float32(scale), config, device, world)
        with Batches(source, common.batch, common.seed, scale=scale, device=device, world=world) as batches:
            keeper = Keeper(run_state, run_state_seconds, trainers, batches, processes=world.size)
            _start(keeper, trainers, world, run_state, resume=resume)
            with reported(trainers, metrics, tensorboard, progress) as report:
                _train(trainers, batches, keeper, report)
            if world.rank == 0:
                keeper.save()
        yield None if world.rank else _finished(source, trainers, scale, device, world)
        if world.rank == 0:
            keeper.remove()
        world.wait()


def _start(
    keeper: Keeper, trainers: Mapping[str, Trainer], world: World, run_state: Path | None, *, resume: bool
) -> None:
    """Take up the run state, or delete the one of an earlier run."""
    if resume:
        keeper.restore()
    elif world.rank == 0:
        keeper.remove()
    done = next(iter(trainers.values())).step_number
    if world.count(done) != done * world.size:
        raise ValueError(f"not all processes see the run state {run_state}; put it where they do")


def _train(trainers: Mapping[str, Trainer], batches: Batches, keeper: Keeper, report: Report) -> None:
    """Take all steps that are left."""
    first = next(iter(trainers.values()))
    for left in range(first.recipe.steps - first.step_number, 0, -1):
        x = batches.next(left)
        with keeper.guarding():
            report({name: _step(name, trainer, x, trainers) for name, trainer in trainers.items()})
        keeper.save_if_due()


def _finished(
    source: Source, trainers: Mapping[str, Trainer], scale: float, device: torch.device, world: World
) -> _Fitted:
    """Calibrate and measure the SAEs on the held-out rows, which are read once."""
    calibration, validation = source.held_out()
    # Rows from all over the calibration part, in a copy of their own.
    sample: NDArray[np.float32] = calibration[sample_rows(len(calibration), source.d_in)]
    held_out = torch.from_numpy(calibration).to(device) * scale, torch.from_numpy(validation).to(device) * scale
    del calibration, validation  # else they would be in memory beside their scaled copies
    saes = {}
    for name, trainer in trainers.items():
        with _named(name, trainers):
            saes[name] = finished(trainer, source, held_out, scale, processes=world.size)
    return _Fitted(saes, sample)


def _step(name: str, trainer: Trainer, x: torch.Tensor, names: Mapping[str, object]) -> StepStats:
    with _named(name, names):
        return trainer.step(x)


@contextmanager
def _named(name: str, names: Mapping[str, object]) -> Iterator[None]:
    """Put an SAE's name before the errors in the block, where there are several SAEs."""
    try:
        with memory_errors():
            yield
    except (ValueError, MemoryError) as error:
        if len(names) == 1:
            raise
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        raise kind(f"{name}: {error}") from error


def _source(activations: Data, config: TrainConfig) -> Source:
    if isinstance(activations, Source):
        return activations
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
    recipe = derive(config, len(centre))
    weights = torch.Generator().manual_seed(int(generator(config.seed, "weights").integers(2**62)))
    model = SparseAutoencoder(recipe.d_sae, torch.from_numpy(centre), generator=weights).to(device)
    return Trainer(model, config, recipe, rng=generator(config.seed, "trainer"), world=world)


def _check_together(configs: Mapping[str, TrainConfig]) -> None:
    """Raise unless the SAEs can share batches and their names can be names of folders."""
    if not configs:
        raise ValueError("there is nothing to fit; give one config at least")
    for name in configs:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a folder; rename that SAE")
    first, *others = configs.items()
    for name, config in others:
        for field in _COMMON:
            value, expected = getattr(config, field), getattr(first[1], field)
            if value != expected:
                raise ValueError(
                    f"SAEs of one pass share {field}, got {expected!r} for {first[0]} and {value!r} for {name}; "
                    "make them equal, or fit them one by one"
                )
