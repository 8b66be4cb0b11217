"""The contents of a bundle from a fitted model: threshold, measurements on held-out rows, weights, manifest."""

import dataclasses
import importlib.metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.calibration.thresholds import slots_for
from sae_runtime.train.measure.rules import batch_rule, even_batch, served_rule, shuffled
from sae_runtime.train.measure.tally import tally_of
from sae_runtime.train.source import Source
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.thresholds import fit_thresholds
from sae_runtime.train.trainer import Trainer


def finished(
    trainer: Trainer, source: Source, held_out: tuple[Tensor, Tensor], scale: float, *, processes: int = 1
) -> tuple[dict[str, NDArray[np.float32]], Manifest]:
    """The weights of a fitted model for activations that are not scaled, and its manifest.

    Args:
        trainer: the trainer of the model.
        source: the source of its training rows.
        held_out: calibration and validation part, scaled, [n, d_in] each, on the model's device.
        scale: the factor by which the activations were multiplied.
        processes: the number of processes that shared the batches.
    """
    config = trainer.config
    threshold, measured, slots = _calibrated(trainer, *held_out)
    weights = _folded(trainer.model, threshold, scale)
    manifest = Manifest(
        architecture=Architecture(
            d_in=source.d_in,
            d_sae=trainer.recipe.d_sae,
            selection="topk" if threshold is None else "threshold",
            k=int(config.k) if threshold is None else None,
        ),
        allocation=Allocation(kind=config.allocation, k=float(config.k), quota=trainer.quota),
        slots=slots,
        model=source.model,
        hook=source.hook,
        measured=measured,
        provenance={**_provenance(trainer, source), "processes": processes},
    )
    return weights, manifest


def _calibrated(
    trainer: Trainer, calibration: Tensor, validation: Tensor
) -> tuple[NDArray[np.float32] | None, dict[str, float], int]:
    """The threshold (None for token choice), the measurements on the validation part, and the slots of encode.onnx."""
    config, model = trainer.config, trainer.model
    threshold = None
    if config.allocation != "token":
        threshold = fit_thresholds(model, calibration, config.k, trainer.max_density)
    served = served_rule(config.k, threshold)
    held_out = tally_of(model, validation, served, config.batch)
    used = tally_of(model, calibration, served, config.batch).matches + held_out.matches
    measured = {
        "tokens": len(validation),
        "fvu": held_out.fvu,
        "l0": float(held_out.l0.mean()),
        "dead": float((used == 0).mean()),
        "dead_tokens": len(calibration) + len(validation),
    }
    if threshold is None:
        return None, measured, int(config.k)
    batch = even_batch(len(validation), config.batch)
    mixed = validation[torch.from_numpy(shuffled(len(validation))).to(validation.device)]
    by_batch = tally_of(model, mixed, batch_rule(config.k, trainer.max_density), batch)
    measured |= {"batch": batch, "batch_fvu": by_batch.fvu, "batch_l0": float(by_batch.l0.mean())}
    return threshold, measured, slots_for(held_out.l0, trainer.recipe.d_sae)


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


def _provenance(trainer: Trainer, source: Source) -> dict[str, Any]:
    return {
        **source.provenance,
        "config": dataclasses.asdict(trainer.config),
        "recipe": dataclasses.asdict(trainer.recipe),
        "quota_r_squared": trainer.quota_r_squared,
        "device": str(trainer.model.W_enc.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "sae-runtime": importlib.metadata.version("sae-runtime"),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
