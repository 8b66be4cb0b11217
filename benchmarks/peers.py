"""One training step of each peer library, by its own trainer, as a function of a batch.

The extra `dev` and the Makefile install them. dictionary_learning comes without its dependencies (they would replace
torch), and imports nnsight only for activation buffers, which nothing here or in the tests uses: a stub stands in.
"""

import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], object]


def sae_lens_batch_topk(d_in: int, d_sae: int, k: int, lr: float, device: str = "cpu") -> Step:
    """SAELens's BatchTopK with Adam and its gradient clipping, as its trainer runs it."""
    import sae_lens.saes as saes
    from sae_lens.saes.sae import TrainStepInput

    sae = saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device=device))
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    number = 0

    def step(x: Tensor) -> None:
        nonlocal number
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=number, is_logging_step=False
        )
        sae.training_forward_pass(given).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        number += 1

    return step


def dictionary_learning_batch_topk(d_in: int, d_sae: int, k: int, lr: float, device: str = "cpu") -> Step:
    """dictionary_learning's BatchTopKTrainer: update() with decoder upkeep and auxiliary loss."""
    stand_in_for_nnsight()
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10_000, activation_dim=d_in, dict_size=d_sae, k=k, layer=0, lm_name="x", lr=lr, device=device
    )
    number = 0

    def step(x: Tensor) -> None:
        nonlocal number
        trainer.update(number, x)
        number += 1

    return step


def sparsify_topk(d_in: int, d_sae: int, k: int, lr: float, device: str = "cpu") -> Step:
    """EleutherAI sparsify's SparseCoder with Adam: sparse backward, no decoder upkeep, no auxiliary loss."""
    if device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=lr, fused=True)

    def step(x: Tensor) -> None:
        coder(x).fvu.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stand_in_for_nnsight() -> None:
    """Let dictionary_learning be imported without what it wants for activation buffers only."""
    for name in ("nnsight", "datasets", "circuitsvis"):
        if name not in sys.modules:
            try:
                __import__(name)
            except ImportError:
                sys.modules[name] = _Stub(name)


class _Stub(types.ModuleType):
    """A module that has every name but Python's own."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
