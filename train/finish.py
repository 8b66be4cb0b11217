"""The contents of a bundle from a fitted model: threshold, measurements on held-out rows, weights, manifest."""

import dataclasses
import importlib.metadata
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.stats import Stats, counted
from sae_runtime.calibration.thresholds import slots_for
from sae_runtime.train.measure.rules import batch_rule, even_batch, served_rule, shuffled
from sae_runtime.train.measure.tally import has_no_variance, tally_of
from sae_runtime.train.source import Source
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.thresholds import fit_thresholds
from sae_runtime.train.trainer import Trainer

_HELD_OUT = ("calibration", "validation")


def finished(
    trainer: Trainer,
    source: Source,
    held_out: tuple[Tensor, Tensor],
    scale: float,
    *,
    more: Tensor | None = None,
    processes: int = 1,
) -> tuple[dict[str, NDArray[np.float32]], Manifest, Stats]:
    """The weights of a fitted model for activations that are not scaled, its manifest, and the use of its features.

    Args:
        trainer: the trainer of the model.
        source: the source of its training rows.
        held_out: calibration and validation part of the source, scaled, [n, d_in] each, on the model's device.
        scale: the factor by which the activations were multiplied.
        more: training rows, scaled, for the limits of feature choice (`fit_thresholds`).
        processes: the number of processes that shared the batches.
    """
    config = trainer.config
    ends = [len(part) - source.left_out_of(name) for part, name in zip(held_out, _HELD_OUT, strict=True)]
    calibration, validation = (part[:end] for part, end in zip(held_out, ends, strict=True))
    threshold = None
    if config.allocation != "token":
        threshold = fit_thresholds(trainer.model, calibration, config.k, trainer.max_density, more=more)
    measured, l0, stats = _measured(trainer, calibration, validation, threshold)
    with_left_out: dict[str, float] = {}
    if (len(calibration), len(validation)) != tuple(map(len, held_out)):
        everything, _, _ = _measured(trainer, *held_out, threshold)
        # A norm so large that a figure overflows float32 leaves that figure unknown.
        with_left_out = {name: figure for name, figure in everything.items() if math.isfinite(figure)}
    weights = _folded(trainer.model, threshold, scale)
    manifest = Manifest(
        architecture=Architecture(
            d_in=source.d_in,
            d_sae=trainer.recipe.d_sae,
            selection="topk" if threshold is None else "threshold",
            k=int(config.k) if threshold is None else None,
        ),
        allocation=Allocation(kind=config.allocation, k=float(config.k), quota=trainer.quota),
        slots=int(config.k) if threshold is None else slots_for(l0, trainer.recipe.d_sae),
        model=source.model,
        hook=source.hook,
        transformer_lens_hook=source.transformer_lens_hook,
        measured=measured,
        left_out=source.left_out,
        measured_with_left_out=with_left_out,
        provenance={**_provenance(trainer, source), "processes": processes},
    )
    return weights, manifest, dataclasses.replace(stats, largest=(stats.largest / scale).astype(np.float32))


def _measured(
    trainer: Trainer, calibration: Tensor, validation: Tensor, threshold: NDArray[np.float32] | None
) -> tuple[dict[str, float], NDArray[np.int64], Stats]:
    """The figures on the validation part, the L0 of its tokens, and the use of features on both parts.

    Dead features are counted on both parts.
    """
    config, model = trainer.config, trainer.model
    served = served_rule(config.k, threshold)
    held_out = tally_of(model, validation, served, config.batch)
    other = tally_of(model, calibration, served, config.batch)
    tokens = len(calibration) + len(validation)
    stats = counted(other.matches + held_out.matches, np.maximum(other.largest, held_out.largest), tokens)
    measured = {
        "tokens": len(validation),
        "fvu": held_out.fvu,
        "l0": float(held_out.l0.mean()),
        "dead": float((stats.density == 0).mean()),
        "dead_tokens": tokens,
    }
    if has_no_variance(held_out, validation.mean(dim=0)):
        del measured["fvu"]  # no share of nothing
    if threshold is None:
        return measured, held_out.l0, stats
    batch = even_batch(len(validation), config.batch)
    mixed = validation[torch.from_numpy(shuffled(len(validation))).to(validation.device)]
    by_batch = tally_of(model, mixed, batch_rule(config.k, trainer.max_density), batch)
    measured |= {"batch": batch, "batch_l0": float(by_batch.l0.mean())}
    if "fvu" in measured:
        measured["batch_fvu"] = by_batch.fvu
    return measured, held_out.l0, stats


def _folded(
    model: SparseAutoencoder, threshold: NDArray[np.float32] | None, scale: float
) -> dict[str, NDArray[np.float32]]:
    """The weights for activations that are not scaled.

    The weights W_enc and W_dec stay. The biases and the threshold are divided by the scale, and so are pre-activations
    and reconstructions.
    """
    weights = {
        "W_enc": model.W_enc.detach().T.contiguous(),
        "W_dec": model.W_dec.detach(),
        "b_enc": model.b_enc.detach() / scale,
        "b_dec": model.b_dec.detach() / scale,
    }
    arrays = {name: tensor.cpu().numpy() for name, tensor in weights.items()}
    if threshold is not None:
        arrays["threshold"] = (threshold / scale).astype(np.float32)
    return arrays


def _has_default_law(trainer: Trainer) -> bool:
    return trainer.quota is not None and trainer.quota_r_squared is None and trainer.config.exponent is None


def _provenance(trainer: Trainer, source: Source) -> dict[str, Any]:
    return {
        **source.provenance,
        "config": dataclasses.asdict(trainer.config),
        "recipe": dataclasses.asdict(trainer.recipe),
        "quota_r_squared": trainer.quota_r_squared,
        **({"quota_default": "too few features were active to fit a law"} if _has_default_law(trainer) else {}),
        "device": str(trainer.model.W_enc.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "sae-runtime": importlib.metadata.version("sae-runtime"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
