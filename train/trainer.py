"""The trainer of one SAE: its model, its optimiser, and the steps that change both."""

import importlib.util
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.device import keep_freed_memory
from sae_runtime.train.measure.redundancy import share_nearly_equal
from sae_runtime.train.recipe import GAMMA, Recipe, schedule
from sae_runtime.train.step.density import DensityTracker, expected_density, fit_quota
from sae_runtime.train.step.losses import square, under_used
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Limits, Losses, Step, plain_step
from sae_runtime.train.step.sparse_step import SparseStep
from sae_runtime.train.world import ALONE, World

_NEARLY_EQUAL_STEPS = 100  # steps between two comparisons of decoder rows, which take part of a forward product's time
_REFIT_STEPS = 50  # steps between two fits of the Zipf law, which changes slowly
_DEFAULT_EXPONENT = 1.0  # of the law where none can be fitted; the densities of real features fall about so


class DefaultLaw(UserWarning):
    """Too few features are active for a fitted law of feature choice."""


@dataclass(frozen=True)
class StepStats:
    """The measurements of one step on its batch. Every share is a share of all features."""

    fvu: float
    aux: float  # the auxiliary loss, without its weight
    l0: float
    dead: float  # share of features without a match for longer than the recipe's dead_tokens
    under_used: float  # share of features that are dead or below a tenth of the density that the Zipf law gives them
    aux_trained: float  # share of features that the auxiliary loss trained
    nearly_equal: float  # share of features whose decoder row nearly equals another row; measured every 100 steps
    lr: float


@dataclass(eq=False)
class Trainer:
    """Fits a model step by step. It expects scaled batches and takes all randomness from `rng`.

    Attributes:
        model: the SAE with its initial weights; equal in all processes.
        config: the settings.
        recipe: the numbers derived from the settings.
        rng: rounds the limits of features; equal in all processes.
        gradients: computes losses and gradients; None chooses the sparse step, or the plain step if the device has no
            kernels.
        world: the processes that share every batch, each with the same number of tokens.

    Raises:
        ValueError: the device has no kernels, and the settings or the processes need them.

    >>> from sae_runtime.train.recipe import derive
    >>> config = TrainConfig(k=2, d_sae=16, tokens=640, batch=64)
    >>> model = SparseAutoencoder(16, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> trainer = Trainer(model, config, derive(config, d_in=4), rng=np.random.default_rng(0))
    >>> trainer.step(torch.randn(64, 4)).l0
    2.0
    """

    model: SparseAutoencoder
    config: TrainConfig
    recipe: Recipe
    rng: np.random.Generator = field(kw_only=True)
    gradients: Step | None = field(default=None, kw_only=True)
    world: World = field(default=ALONE, kw_only=True)
    step_number: int = field(default=0, init=False)
    quota: Quota | None = field(default=None, init=False)  # set when feature choice begins
    quota_r_squared: float | None = field(default=None, init=False)  # of the fitted law
    nearly_equal: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        device = self.model.W_enc.device
        self.tracker = DensityTracker(self.recipe.d_sae, self.recipe.density_window, device)
        self.expected = torch.zeros_like(self.tracker.density)
        # With 24,576 features fused Adam takes a fifth of the time that Adam takes tensor by tensor.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.recipe.lr, fused=True)
        self._gradients = self.gradients or _step_for(device, self.config, self.world)
        self._trained = torch.zeros_like(self.tracker.silent_tokens, dtype=torch.bool)

    def step(self, x: Tensor) -> StepStats:
        """Take one optimiser step on a batch, of which x [n, d_in] is this process's part.

        Raises:
            ValueError: the loss or its gradient is not finite; the model is left as it was before the step.
        """
        self._begin_feature_choice_if_due()
        n = len(x) * self.world.size
        recipe = self.recipe
        losses = self._gradients(self.model, x, self.limits(n), self._observe, recipe.aux_weight, recipe.aux_k)
        lr = recipe.lr * schedule(recipe, self.step_number)
        self._update(losses, lr)
        if self.step_number % _NEARLY_EQUAL_STEPS == 0 or self.nearly_equal is None:
            self.nearly_equal = share_nearly_equal(self.model.W_dec.detach())
        self.step_number += 1
        dead, few = self._under_used(GAMMA)
        return StepStats(
            fvu=losses.fvu.item(),
            aux=losses.aux.item(),
            l0=losses.matches / n,
            dead=dead.double().mean().item(),
            under_used=few.double().mean().item(),
            aux_trained=self._trained.double().mean().item(),
            nearly_equal=self.nearly_equal,
            lr=lr,
        )

    def start_moments(self) -> None:
        """Allocate Adam's moments before the first step, so that a run state can be copied into them."""
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),  # a float, on the device, as fused Adam keeps it
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def limits(self, n: int) -> Limits:
        """The limits on the matches of the next batch of n tokens. Feature choice rounds its limits at random."""
        if self.config.allocation == "token":
            return Limits(per_token=int(self.config.k))
        limits = Limits(total=quota.total_matches(self.config.k, n))
        if (max_density := self.max_density) is not None:
            limit = quota.sampled_tokens_per_feature(max_density, n, self.rng.random())
            limits["per_feature"] = torch.from_numpy(limit).to(self.model.W_enc.device)
        return limits

    @property
    def max_density(self) -> NDArray[np.float64] | None:
        """The largest density of each feature, [d_sae]; None unless feature choice has begun."""
        return None if self.quota is None else quota.max_densities(self.quota, self.config.k, self.recipe.d_sae)

    def _observe(self, counts: Tensor, n: int) -> Tensor:
        """Record the matches of each feature in a batch, and return the features that the auxiliary loss trains."""
        self.tracker.update(counts, n)
        if self.step_number % _REFIT_STEPS == 0:
            self.expected = expected_density(self.tracker.density)
        _, self._trained = self._under_used(self.recipe.gamma)
        return self._trained

    def _under_used(self, gamma: float) -> tuple[Tensor, Tensor]:
        """The dead features, and the under-used ones: bool [d_sae] each."""
        dead = self.tracker.silent_tokens >= self.recipe.dead_tokens
        return dead, under_used(self.tracker.density, self.expected, dead, gamma)

    def _update(self, losses: Losses, lr: float) -> None:
        squares = [square(p.grad) for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt()
        if not (torch.isfinite(losses.fvu) and torch.isfinite(losses.aux) and torch.isfinite(norm)):
            raise ValueError(
                f"the loss or its gradient is not finite at step {self.step_number}; "
                "look for extreme activations or batches of equal rows, or train with a smaller --lr"
            )
        # Adam gets gradients of norm 1. The first steps have far larger gradients than later ones. Without the scaling
        # they keep Adam's second moments too large for a thousand steps, which adds 4 % to the FVU (docs/log.md). Adam
        # divides by grad_scale while it reads the gradients, so the division costs no pass of its own.
        self.optimizer.grad_scale = norm.clamp_min(1e-30)  # type: ignore[attr-defined]  # torch.amp sets it too
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.model.normalise_decoder()

    def _begin_feature_choice_if_due(self) -> None:
        """Begin feature choice at its step, or later if too few features are active then to fit a law.

        Half of the steps that are left are waited for. Then a default law holds, so that the run is not lost.
        """
        start = self.recipe.feature_start
        if self.config.allocation != "feature" or self.quota is not None or self.step_number < start:
            return
        late = self.step_number >= start + (self.recipe.steps - start) // 2
        if not late and (self.step_number - start) % _REFIT_STEPS:
            return
        try:
            self.begin_feature_choice()
        except ValueError as error:
            if late:
                warnings.warn(
                    f"{error}: no law could be fitted, so quotas fall with the exponent {_DEFAULT_EXPONENT:g}; or give "
                    "--exponent",
                    DefaultLaw,
                    stacklevel=2,
                )
                self.begin_feature_choice(Quota(exponent=_DEFAULT_EXPONENT, slack=self.config.slack))

    @torch.no_grad()
    def begin_feature_choice(self, law: Quota | None = None) -> None:
        """Rank the features by their density so far, and fix the limits of the ranks for the rest of the run.

        Args:
            law: of the limits; None takes the config's exponent, or else fits a law to the densities.

        Raises:
            ValueError: too few features are active to fit a Zipf law.
        """
        config = self.config
        if law is None and config.exponent is not None:
            law = Quota(exponent=config.exponent, offset=config.offset or 0.0, slack=config.slack)
        if law is None:
            law, self.quota_r_squared = fit_quota(self.tracker.density, config.slack)
        self.quota = law
        order = torch.argsort(self.tracker.density, descending=True, stable=True)
        self.tracker.reorder(order)
        self.expected = self.expected[order]
        # The features are renumbered by rank, so that the limits fall with the feature number, in the bundle too.
        for parameter in (self.model.W_enc, self.model.W_dec, self.model.b_enc):
            moments = self.optimizer.state.get(parameter, {})
            for tensor in (parameter, *(m for name, m in moments.items() if name != "step")):
                tensor.copy_(tensor[order])


def _step_for(device: torch.device, config: TrainConfig, world: World) -> Step:
    product_dtype: torch.dtype = getattr(torch, config.product_dtype)
    if device.type == "cpu":
        keep_freed_memory()
        return SparseStep(product_dtype=product_dtype, world=world)
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from sae_runtime.train.step import triton_kernels

        return SparseStep(product_dtype=product_dtype, kernels=triton_kernels, world=world)
    if world.size > 1 or config.product_dtype != "float32":
        raise ValueError(
            f"several processes and product dtype {config.product_dtype} need kernels, and {device} has none; "
            "use --device cpu, or a CUDA device with triton installed"
        )
    return plain_step
