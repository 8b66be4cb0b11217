"""The numbers of a run that the user need not give: they follow from d_in, d_sae, k and the number of tokens."""

import math
from dataclasses import dataclass

from sae_runtime.train.config import TrainConfig

GAMMA = 0.1  # a feature is under-used below this share of the density that the Zipf law gives its rank
_AUX_WEIGHT = 1 / 32  # of the auxiliary loss; the FVU has weight 1
_EXPANSION = 8  # features for each number of an activation


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a run that its config does not hold.

    Attributes:
        d_sae: features in the dictionary.
        steps: steps of the run.
        lr: Adam's peak step size.
        warmup_steps: steps in which the step size rises linearly from 0.
        decay_steps: steps at the end in which it falls linearly to 0.
        aux_weight: weight of the auxiliary loss; the FVU has weight 1; 0 leaves the auxiliary loss out.
        aux_k: features of a token that the auxiliary loss uses.
        dead_tokens: a feature is dead after this number of tokens without a match.
        density_window: length of the moving average of densities, in tokens.
        gamma: the auxiliary loss trains features below this share of the law's density.
        feature_start: the step at which feature choice begins.
    """

    d_sae: int
    steps: int
    lr: float
    warmup_steps: int
    decay_steps: int
    aux_weight: float
    aux_k: int
    dead_tokens: int
    density_window: int
    gamma: float
    feature_start: int


def derive(config: TrainConfig, d_in: int) -> Recipe:
    """The recipe for a config on activations of d_in numbers. It is our design; docs/log.md has the measurements.

    >>> recipe = derive(TrainConfig(k=8, tokens=1_000_000), d_in=384)
    >>> recipe.d_sae, recipe.steps, recipe.aux_k, recipe.dead_tokens
    (3072, 489, 256, 100000)

    Raises:
        ValueError: k is above the derived d_sae, or the features are too few to fit a Zipf law.
    """
    d_sae = config.d_sae or -(-_EXPANSION * d_in // 16) * 16
    config.check_d_sae(d_sae)
    steps = math.ceil(config.tokens / config.batch)
    warmup_share = config.warmup_share
    if warmup_share is None:
        warmup_share = 0.4 if config.exponent is None else 0.0
    return Recipe(
        d_sae=d_sae,
        steps=steps,
        lr=config.lr or _learning_rate(d_sae, steps),
        warmup_steps=max(min(steps // 20, 1000), 1),
        decay_steps=max(steps * 3 // 10, 1),
        aux_weight=0.0 if config.aux == "none" else _AUX_WEIGHT,
        aux_k=min(2 ** round(math.log2(max(d_in / 2, 1))), d_sae),
        dead_tokens=max(min(config.tokens // 10, 10_000_000), 2 * config.batch),
        density_window=max(min(config.tokens // 10, 2_000_000), 8 * config.batch),
        gamma=GAMMA if config.aux == "zipf" else 0.0,
        feature_start=min(round(warmup_share * steps), steps - 1),
    )


def _learning_rate(d_sae: int, steps: int) -> float:
    # Long runs use the rule of dictionary_learning, short runs a larger step size. Above 0.01 a step turns unit rows so
    # far that features die (docs/log.md, 2026-11-22).
    return min(2e-4 / math.sqrt(d_sae / 2**14) * max(1.0, math.sqrt(30_000 / steps)), 0.01)


def schedule(recipe: Recipe, step: int) -> float:
    """The step size at a step, counted from 0, as a share of the peak.

    >>> recipe = derive(TrainConfig(k=8, tokens=2048 * 100), d_in=384)
    >>> [round(schedule(recipe, step), 2) for step in (0, 2, 50, 85, 99)]
    [0.2, 0.6, 1.0, 0.5, 0.03]
    """
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.steps - step) / recipe.decay_steps
    return min(rise, fall, 1.0)
