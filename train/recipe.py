"""What follows from d_in, d_sae, k and the token budget where the user does not say."""

import math
from dataclasses import dataclass

from sae_runtime.train.config import TrainConfig

GAMMA = 0.1  # a feature is under-used below this share of what the Zipf law expects of its rank


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number a run uses and did not get from its config."""

    steps: int
    lr: float  # peak, Adam
    warmup_steps: int  # linear, from 0
    decay_steps: int  # linear, to 0, at the end
    aux_k: int  # features a token lends to the auxiliary loss
    dead_tokens: int  # silence after which a feature is dead
    density_window: int  # tokens, of the moving average of densities
    gamma: float  # share of what the Zipf law expects below which the auxiliary loss trains a feature
    feature_start: int  # step at which feature choice begins


def derive(config: TrainConfig, d_in: int) -> Recipe:
    """The recipe for a config on activations of width d_in (our design; docs/log.md has the measurements)."""
    steps = math.ceil(config.tokens / config.batch)
    warmup_share = config.warmup_share
    if warmup_share is None:
        warmup_share = 0.4 if config.exponent is None else 0.0
    return Recipe(
        steps=steps,
        lr=config.lr or _learning_rate(config.d_sae, steps),
        warmup_steps=max(min(steps // 20, 1000), 1),
        decay_steps=max(steps * 3 // 10, 1),
        aux_k=min(config.aux_k or 2 ** round(math.log2(max(d_in / 2, 1))), config.d_sae),
        dead_tokens=config.dead_tokens or max(min(config.tokens // 10, 10_000_000), 2 * config.batch),
        density_window=max(min(config.tokens // 10, 2_000_000), 8 * config.batch),
        gamma=GAMMA if config.aux == "zipf" else 0.0,
        feature_start=min(round(warmup_share * steps), steps - 1),
    )


def _learning_rate(d_sae: int, steps: int) -> float:
    # dictionary_learning's rule for long runs, raised for short ones; beyond 0.01 a step turns unit rows so far that
    # features die (docs/log.md, 2026-11-22).
    return min(2e-4 / math.sqrt(d_sae / 2**14) * max(1.0, math.sqrt(30_000 / steps)), 0.01)


def schedule(recipe: Recipe, step: int) -> float:
    """Share of the peak step size at a step, counted from 0."""
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.steps - step) / recipe.decay_steps
    return min(rise, fall, 1.0)


def slack(config: TrainConfig, recipe: Recipe, step: int) -> float:
    """Slack of the caps at a step of feature choice: from slack_start down to slack, in equal ratios."""
    share = (step - recipe.feature_start) / max(recipe.steps - 1 - recipe.feature_start, 1)
    start = config.slack if config.slack_start is None else config.slack_start
    return float(start * (config.slack / start) ** min(max(share, 0.0), 1.0))
