"""Fit an SAE on activations, from the first batch to the bundle."""

import dataclasses
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import bundle, files, quota
from sae_runtime.activations import Activations, Shard, as_float32, open_activations
from sae_runtime.manifest import Allocation, Encoder, Manifest
from sae_runtime.train.calibrate import calibrate
from sae_runtime.train.checkpoint import Keeper
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.data import Batches, Split, centre_and_scale, split
from sae_runtime.train.device import memory_errors, usable_device
from sae_runtime.train.evaluate import batch_rule, fvu_and_l0, matches, served_rule
from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.recipe import derive
from sae_runtime.train.report import reported
from sae_runtime.train.trainer import Trainer


@memory_errors()
def fit(
    activations: Activations | NDArray[Any] | str | Path,
    out: str | Path,
    config: TrainConfig,
    *,
    metrics: Path | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 300.0,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Manifest:
    """Fit an SAE and write it as a bundle, not exported yet.

    Args:
        activations: a path that `open_activations` takes, what it gives, or an array [n, d_in].
        out: the bundle's folder.
        config: what to fit.
        metrics: a file for one JSON line every ten steps; not inside `out`.
        checkpoint: a folder for the state of the run, from which it goes on after a crash, bit for bit on the same
            machine with the same threads and versions; removed when the bundle stands.
        checkpoint_seconds: how often it is written.
        resume: go on from the checkpoint, or start where there is none.
        force: replace a bundle, a file of metrics and a checkpoint that stand there already.
        progress: show a progress bar on stderr, where that is a terminal.

    Returns:
        The manifest of the bundle.

    Raises:
        ValueError: the activations are too few, not finite or all equal, the device is not usable, or the loss
            stopped being finite.
        FileExistsError: `out` exists and `force` is not set, or `metrics` or `checkpoint` exists and neither `force`
            nor `resume` is.
        MemoryError: the SAE or a batch does not fit on the device.
    """
    out = Path(out)
    files.check_free(out, force=force)
    if metrics is not None and metrics.is_dir():
        raise ValueError(f"the metrics {metrics} are a folder; name a file in it")
    for path in (metrics, checkpoint):
        if path is not None:
            _check_beside(path, out, force=force or resume)
    source = _opened(activations)
    device = usable_device(config.device)
    rng = np.random.default_rng(config.seed)
    parts = split(source, config.holdout, rng)
    trainer, scale = _trainer(source, parts.train, config, rng, device)
    stream = Batches(source, parts.train, config.batch, rng)
    keeper = Keeper(checkpoint, checkpoint_seconds, trainer, stream)
    if resume:
        keeper.restore()
    else:
        keeper.remove()
    with reported(trainer, metrics, progress) as report:
        while trainer.step_number < trainer.recipe.steps:
            x = torch.from_numpy(next(stream)).to(device) * scale
            report(keeper.guarded(x))
            keeper.save_if_due()
    keeper.save()
    weights, manifest = _finished(trainer, source, parts, scale)
    bundle.write(out, weights, manifest, force=force)
    keeper.remove()
    return bundle.read(out).manifest


def _finished(
    trainer: Trainer, source: Activations, parts: Split, scale: float
) -> tuple[dict[str, NDArray[np.float32]], Manifest]:
    """Calibrate and measure on the held-out parts, and fold the input scale: what the bundle holds."""
    config, device = trainer.config, trainer.model.W_enc.device
    held_out = tuple(
        torch.from_numpy(source.rows(rows)).to(device) * scale for rows in (parts.calibration, parts.validation)
    )
    theta, measured, width = _calibrated(trainer, *held_out)
    weights = _folded(trainer.model, theta, scale)
    manifest = Manifest(
        encoder=Encoder(
            d_in=source.d_in,
            d_sae=config.d_sae,
            selection="topk" if theta is None else "threshold",
            k=int(config.k) if theta is None else None,
        ),
        allocation=Allocation(kind=config.allocation, k=float(config.k), quota=trainer.quota),
        width=width,
        model=source.model,
        hook=source.hook,
        measured=measured,
        provenance=_provenance(source, parts, trainer, device),
    )
    return weights, manifest


def _check_beside(path: Path, out: Path, *, force: bool) -> None:
    if out.resolve() in (path.resolve(), *path.resolve().parents):
        raise ValueError(f"{path} would lie inside the bundle {out}; name another place")
    if path.exists() and not force:
        raise FileExistsError(f"{path} already exists; go on with --resume, or start over with --force")
    files.check_free(path, force=True)


def _opened(activations: Activations | NDArray[Any] | str | Path) -> Activations:
    if isinstance(activations, Activations):
        return activations
    if isinstance(activations, str | Path):
        return open_activations(activations)
    x = as_float32(activations)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"activations must be [n, d_in], got {list(x.shape)}; reshape them")
    return Activations(Path("array"), [Shard(x)])


def _trainer(
    source: Activations, rows: NDArray[np.int64], config: TrainConfig, rng: np.random.Generator, device: torch.device
) -> tuple[Trainer, float]:
    mean, scale = centre_and_scale(source, rows, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    model = SparseAutoencoder(config.d_sae, torch.from_numpy(mean) * scale, generator=generator).to(device)
    return Trainer(model, config, derive(config, source.d_in), rng=rng), scale


def _calibrated(
    trainer: Trainer, calibration: Tensor, validation: Tensor
) -> tuple[NDArray[np.float32] | None, dict[str, float], int]:
    """Threshold (None for token choice), what it measures on the validation part, and the width of encode.onnx."""
    config, model = trainer.config, trainer.model
    cap = None if trainer.quota is None else quota.caps(trainer.quota, config.k, config.d_sae)
    theta = None
    if config.allocation != "token":
        theta = calibrate(model, calibration, config.k, cap)
    served = served_rule(config.k, theta)
    fvu, l0 = fvu_and_l0(model, validation, served, config.batch)
    used = matches(model, calibration, served, config.batch) + matches(model, validation, served, config.batch)
    measured = {
        "tokens": len(validation),
        "fvu": fvu,
        "l0": float(l0.mean()),
        "dead": float((used == 0).mean()),
        "dead_tokens": len(calibration) + len(validation),
    }
    if theta is None:
        return None, measured, int(config.k)
    # Batches of one size: over a short last one the caps of feature choice would round to nothing.
    batch = math.ceil(len(validation) / max(round(len(validation) / config.batch), 1))
    batch_fvu, batch_l0 = fvu_and_l0(model, validation, batch_rule(config.k, cap), batch)
    measured |= {
        "batch": batch,
        "batch_fvu": batch_fvu,
        "batch_l0": float(batch_l0.mean()),
    }
    # Wide enough for all but one token in a thousand; those are encoded again, wider.
    width = math.ceil(float(np.quantile(l0, 0.999)) / 8 + 1e-9) * 8
    return theta, measured, min(max(width, 8), config.d_sae)


def _folded(
    model: SparseAutoencoder, theta: NDArray[np.float32] | None, scale: float
) -> dict[str, NDArray[np.float32]]:
    """Weights for raw activations. With x scaled by c, z scales by c too, so only the biases and the cut change."""
    weights = {
        "W_enc": model.W_enc.detach().T.contiguous(),
        "W_dec": model.W_dec.detach(),
        "b_enc": model.b_enc.detach() / scale,
        "b_dec": model.b_dec.detach() / scale,
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in weights.items()}
    if theta is not None:
        arrays["threshold"] = (theta / scale).astype(np.float32)
    return arrays


def _provenance(source: Activations, parts: Split, trainer: Trainer, device: torch.device) -> dict[str, Any]:
    return {
        "activations": source.path.name,
        "rows": {part.name: len(getattr(parts, part.name)) for part in dataclasses.fields(parts)},
        "config": dataclasses.asdict(trainer.config),
        "recipe": dataclasses.asdict(trainer.recipe),
        "quota_r_squared": trainer.quota_r_squared,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "sae-runtime": importlib.metadata.version("sae-runtime"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
