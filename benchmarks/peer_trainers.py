"""Whole fits by the peer libraries' own trainers, on batches that are given, and how each then serves.

Row "own": raw activations and the library's defaults. Row "ours": inputs at our scale, and the peak step size, warm-up
and decay of our recipe; all else stays the library's. Every SAE is saved and loaded by its library before it serves.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import stand_in_for_nnsight
from torch import Tensor, nn

from sae_runtime.train.recipe import Recipe
from sae_runtime.train.step.model import SparseAutoencoder


@dataclass(frozen=True)
class Task:
    """What every method is given, the same for all."""

    x: Tensor  # raw activations to train on, [n, d_in]
    calibration: Tensor  # raw, held out, [m, d_in]
    validation: Tensor  # raw, held out too, to measure on
    order: Tensor  # rows of x in each batch, int64 [steps, batch]
    mean: Tensor  # of x, [d_in]
    scale: float  # of our inputs
    recipe: Recipe  # our step size, warm-up and decay
    d_sae: int
    k: int
    seed: int

    def batches(self, scale: float = 1.0) -> Iterator[Tensor]:
        """The batches in their order, float32 [batch, d_in], times the scale."""
        for rows in self.order:
            yield self.x[rows] * scale


@dataclass(frozen=True)
class Fitted:
    """A fitted SAE as it is served: what goes in and comes out is raw."""

    encode: Callable[[Tensor], Tensor]  # activations [n, d_in] to features [n, d_sae]
    decode: Callable[[Tensor], Tensor]  # and back
    seconds: float  # of training alone
    # For rules over a batch: the same weights for inputs times `scale`, and the caps of feature choice.
    model: SparseAutoencoder | None = None
    scale: float = 1.0
    max_density: NDArray[np.float64] | None = None


def sae_lens(task: Task, *, architecture: str, our_settings: bool = False) -> Fitted:
    """SAELens's SAETrainer; `architecture` is "topk" or "batchtopk", which is saved and served as JumpReLU."""
    import sae_lens.saes as saes
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sizes = {"d_in": task.x.shape[1], "d_sae": task.d_sae, "k": task.k}
    sae: Any
    if architecture == "topk":
        sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(**sizes))
    else:
        sae = saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(**sizes))
    lr, settings, scale = SAETrainerConfig.lr, {}, 1.0
    if our_settings:
        recipe, scale = task.recipe, task.scale
        lr, settings = recipe.lr, {"lr_warm_up_steps": recipe.warmup_steps, "lr_decay_steps": recipe.decay_steps}
    steps, batch = task.order.shape
    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=lr,
        lr_end=lr / 10,  # as its runner sets it; the constant schedule of the defaults does not use it
        **settings,
    )
    trainer = SAETrainer(config, sae, task.batches(scale))
    start = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        served = saes.SAE.load_from_disk(folder, device="cpu")
    return Fitted(
        encode=lambda x: served.encode(x * scale),
        decode=lambda f: served.decode(f) / scale,
        seconds=seconds,
        model=None if architecture == "topk" else _model(served.W_enc.T, served.W_dec, served.b_enc, served.b_dec),
        scale=scale,
    )


def dictionary_learning(task: Task, *, our_settings: bool = False) -> Fitted:
    """dictionary_learning's trainSAE with its BatchTopKTrainer, served by its threshold."""
    stand_in_for_nnsight()
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dictionary_learning.training import trainSAE

    steps = len(task.order)
    # Its defaults, but in runs too short for them: it refuses a warm-up as long as the run, and leaves a threshold
    # unset that no step has touched.
    early = 1000 if steps > 1001 else steps // 2
    settings: dict[str, Any] = {"warmup_steps": early, "threshold_start_step": early}
    scale = 1.0
    if our_settings:
        recipe, scale = task.recipe, task.scale
        settings |= {"lr": recipe.lr, "warmup_steps": recipe.warmup_steps, "decay_start": steps - recipe.decay_steps}
    sizes = {"activation_dim": task.x.shape[1], "dict_size": task.d_sae, "k": task.k}
    names = {"layer": 0, "lm_name": "none", "device": "cpu", "seed": task.seed}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        trainSAE(
            task.batches(scale),
            [{"trainer": BatchTopKTrainer, "steps": steps, **sizes, **names, **settings}],
            steps,
            save_dir=folder,
            device="cpu",
        )
        seconds = time.perf_counter() - start
        served = BatchTopKSAE.from_pretrained(Path(folder) / "trainer_0" / "ae.pt")
    return Fitted(
        encode=lambda x: served.encode(x * scale),
        decode=lambda f: served.decode(f) / scale,
        seconds=seconds,
        model=_model(served.encoder.weight, served.decoder.weight.T, served.encoder.bias, served.b_dec),
        scale=scale,
    )


def sparsify(task: Task) -> Fitted:
    """sparsify's Trainer: schedule-free sign descent, no auxiliary loss by default.

    It takes activations from a model's module. Here the model is a table of them and the tokens are row numbers: a
    batch is one sequence.
    """
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sae=SparseCoderConfig(num_latents=task.d_sae, k=task.k),
            batch_size=1,
            hookpoints=["table"],
            init_seeds=[task.seed],
            log_to_wandb=False,
            save_dir=folder,
            run_name="run",
        )
        dataset: Any = [{"input_ids": rows} for rows in task.order]
        model: Any = _Table(task.x)
        trainer = Trainer(config, dataset, model)
        precision = torch.get_float32_matmul_precision()
        start = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - start
        torch.set_float32_matmul_precision(precision)  # it sets its own for the whole process
        served = SparseCoder.load_from_disk(Path(folder) / "run" / "table")

    def encode(x: Tensor) -> Tensor:
        values, at, _ = served.encode(x)
        return torch.zeros(len(x), task.d_sae).scatter_(1, at, values)

    # Its own decode takes values and numbers; on dense features it is this product.
    return Fitted(encode=encode, decode=lambda f: f @ served.W_dec + served.b_dec, seconds=seconds)


class _Table(nn.Module):
    """As much of a transformers model as sparsify's trainer asks for."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(len(x), x.shape[1], _weight=x, _freeze=True)
        self.device = x.device
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.table(input_ids)
        return rows


def _model(W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> SparseAutoencoder:
    """The same encoder and decoder in our form; matrices are [d_sae, d_in]."""
    model = SparseAutoencoder(len(b_enc), b_dec.detach(), generator=torch.Generator())
    with torch.no_grad():
        model.W_enc.copy_(W_enc)
        model.W_dec.copy_(W_dec)
        model.b_enc.copy_(b_enc)
    return model
