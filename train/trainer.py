"""One run in motion: the model, its optimiser, and what a step does to them."""

import dataclasses
import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_runtime import quota
from sae_runtime.quota import Quota
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.density import DensityTracker, expected_density, fit_quota
from sae_runtime.train.device import keep_freed_memory
from sae_runtime.train.losses import square, under_used
from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.plain_step import Limits, Losses, Step, plain_step
from sae_runtime.train.recipe import GAMMA, Recipe, schedule, slack
from sae_runtime.train.redundancy import share_nearly_equal
from sae_runtime.train.sparse_step import SparseStep
from sae_runtime.train.world import World

_LOOK_STEPS = 100  # a look at the decoder costs a share of a forward product
_REFIT_STEPS = 50  # the law behind aux_zipf_loss moves slowly


@dataclass(frozen=True)
class StepStats:
    """What one step measured on its batch."""

    fvu: float
    aux: float
    l0: float
    dead: float  # share of features silent for longer than the limit
    dying: float  # share of features, not dead, that fire far less than the Zipf law expects of their rank
    under_used: float  # share of features that the auxiliary loss trained
    nearly_equal: float  # share of features whose decoder row another nearly equals; measured every 100 steps
    lr: float


class Trainer:
    """Fits a model step by step. Batches are already scaled; all randomness comes from `rng`."""

    def __init__(
        self,
        model: SparseAutoencoder,
        config: TrainConfig,
        recipe: Recipe,
        *,
        rng: np.random.Generator,
        gradients: Step | None = None,
        world: World | None = None,
    ) -> None:
        """Start a run.

        Args:
            model: the SAE at its start; equal in all processes.
            config: what to fit.
            recipe: what follows from it.
            rng: of the rounding of quotas; equal in all processes.
            gradients: None takes the sparse step, or the plain one where there are no kernels for the device.
            world: the processes that share every batch, each with as many tokens.
        """
        self.model = model
        self.config = config
        self.recipe = recipe
        self.rng = rng
        self.step_number = 0
        self.quota: Quota | None = None  # set when feature choice begins
        self.quota_r_squared: float | None = None  # of the fitted law
        self.tracker = DensityTracker(config.d_sae, recipe.density_window, model.W_enc.device)
        self.expected = torch.zeros_like(self.tracker.density)
        # Fused: at 24,576 features a fifth of the time that Adam takes tensor by tensor.
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
        self._world = world or World()
        self._gradients = gradients or _step_for(model.W_enc.device, config, self._world)
        self.nearly_equal: float | None = None
        self._trained = torch.zeros_like(self.tracker.silent_tokens, dtype=torch.bool)

    def step(self, x: Tensor) -> StepStats:
        """Take one optimiser step on a batch, of which x [n, d_in] is this process's part.

        Raises:
            ValueError: the loss or its gradient is not finite; the model is left as it was before the step.
        """
        if self.config.allocation == "feature" and self.step_number == self.recipe.feature_start:
            self._begin_feature_choice()
        n = len(x) * self._world.size
        weight = 0.0 if self.config.aux == "none" else self.config.aux_weight
        losses = self._gradients(
            self.model, x, self._limits(n), self._observe, aux_weight=weight, aux_k=self.recipe.aux_k
        )
        lr = self.recipe.lr * schedule(self.recipe, self.step_number)
        self._update(losses, lr)
        if self.step_number % _LOOK_STEPS == 0 or self.nearly_equal is None:
            self.nearly_equal = share_nearly_equal(self.model.W_dec.detach())
        self.step_number += 1
        dead = self.tracker.silent_tokens >= self.recipe.dead_tokens
        return StepStats(
            fvu=losses.fvu.item(),
            aux=losses.aux.item(),
            l0=losses.matches / n,
            dead=dead.double().mean().item(),
            dying=(under_used(self.tracker.density, self.expected, dead, GAMMA) & ~dead).double().mean().item(),
            under_used=self._trained.double().mean().item(),
            nearly_equal=self.nearly_equal,
            lr=lr,
        )

    def start_moments(self) -> None:
        """Make room for Adam's moments before the first step, for a checkpoint to fill."""
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),  # a float, on the device, as fused Adam keeps it
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _limits(self, n: int) -> Limits:
        if self.config.allocation == "token":
            return Limits(per_token=int(self.config.k))
        limits = Limits(total=quota.budget(self.config.k, n))
        if self.quota is not None:
            now = dataclasses.replace(self.quota, slack=slack(self.config, self.recipe, self.step_number))
            cap = quota.caps(now, self.config.k, self.config.d_sae)
            limit = quota.sampled_tokens_per_feature(cap, n, self.rng.random())
            limits["per_feature"] = torch.from_numpy(limit).to(self.model.W_enc.device)
        return limits

    def _observe(self, counts: Tensor, n: int) -> Tensor:
        """Take in the matches of a batch, and say which features the auxiliary loss is to train."""
        self.tracker.update(counts, n)
        if self.step_number % _REFIT_STEPS == 0:
            self.expected = expected_density(self.tracker.density)
        dead = self.tracker.silent_tokens >= self.recipe.dead_tokens
        self._trained = under_used(self.tracker.density, self.expected, dead, self.recipe.gamma)
        return self._trained

    def _update(self, losses: Losses, lr: float) -> None:
        squares = [square(p.grad) for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt()
        if not (torch.isfinite(losses.fvu) and torch.isfinite(losses.aux) and torch.isfinite(norm)):
            raise ValueError(
                f"the loss or its gradient is not finite at step {self.step_number}; "
                "look for extreme activations or batches of equal rows, or train with a smaller --lr"
            )
        # Gradients of norm 1: else those of the first steps, far larger than later ones, hold Adam's second moments up
        # for a thousand steps, which costs 4 % of the FVU (docs/log.md). Adam divides while it reads them.
        self.optimizer.grad_scale = norm.clamp_min(1e-30)  # type: ignore[attr-defined]  # as torch.amp sets it
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.model.normalise_decoder()

    @torch.no_grad()
    def _begin_feature_choice(self) -> None:
        """Freeze the ranks of the features by their use so far, and with them the quota."""
        config = self.config
        if config.exponent is not None:
            self.quota = Quota(exponent=config.exponent, offset=config.offset or 0.0, slack=config.slack)
        else:
            self.quota, self.quota_r_squared = fit_quota(self.tracker.density, config.slack)
        order = torch.argsort(self.tracker.density, descending=True, stable=True)
        self.tracker.reorder(order)
        self.expected = self.expected[order]
        # Rank is feature number from here on: the caps fall along the columns, in training and in the bundle.
        for parameter in (self.model.W_enc, self.model.W_dec, self.model.b_enc):
            moments = self.optimizer.state.get(parameter, {})
            for tensor in (parameter, *(m for name, m in moments.items() if name != "step")):
                tensor.copy_(tensor[order])


def _step_for(device: torch.device, config: TrainConfig, world: World) -> Step:
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.precision]
    if device.type == "cpu":
        keep_freed_memory()
        return SparseStep(precision=precision, world=world)
    if device.type == "cuda" and importlib.util.find_spec("triton"):
        from sae_runtime.train import triton_kernels

        return SparseStep(precision=precision, kernels=triton_kernels, world=world)
    if world.size > 1 or config.precision != "float32":
        raise ValueError(
            f"several processes and precision {config.precision} need kernels, which {device} has not; "
            "use --device cpu, or a CUDA device with triton installed"
        )
    return plain_step
