"""Everything a training run can be told; the command line is made from it, and the manifest keeps it."""

import operator
from dataclasses import dataclass, field, fields
from typing import Any

from sae_runtime.quota import FIT_FEATURES


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field that the command line makes an option of: its default (or MISSING), its help, and such as `choices`."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. What is None follows from the rest; `recipe.py` says how, and the manifest records what came out."""

    allocation: str = option(
        "mutual",
        "who competes for the budget: tokens, the whole batch, or features",
        choices=("token", "mutual", "feature"),
    )
    k: float = option(32.0, "matches (active features) a token gets on average; a whole number for token choice")
    d_sae: int = field(metadata={"help": "features in the dictionary"})
    tokens: int = field(metadata={"help": "tokens to train on, repeats counted"})
    batch: int = option(2048, "tokens a step; the budget of mutual and feature choice spans one batch")
    seed: int = option(0, "of the initial weights, the split and the order of tokens; equal seeds give equal runs")
    lr: float | None = option(None, "Adam's peak step size [derived from d_sae and the number of steps]")
    aux: str = option(
        "zipf", "auxiliary loss over under-used features, dead features, or none", choices=("zipf", "dead", "none")
    )
    aux_weight: float = option(1 / 32, "weight of the auxiliary loss against the reconstruction")
    aux_k: int | None = option(None, "features a token lends to the auxiliary loss [a power of two near d_in / 2]")
    dead_tokens: int | None = option(
        None, "tokens of silence after which a feature is dead [a tenth of the run, at most 10M]"
    )
    slack: float = option(3.0, "feature choice: cap of a feature over its share of the budget; 1 is strict, >= 1")
    slack_start: float | None = option(
        None, "feature choice: slack at its first step, from where it falls to --slack at the last [as --slack]"
    )
    exponent: float | None = option(None, "feature choice: Zipf exponent of the shares, 0 is uniform [fitted]")
    offset: float | None = option(None, "feature choice: Zipf-Mandelbrot offset of the shares, in ranks [fitted]")
    warmup_share: float | None = option(
        None,
        "feature choice: share of the run that is mutual choice, to rank features by use [0.4, or 0 with an exponent]",
    )
    holdout: float = option(
        0.1, "share of the tokens kept from training: half calibrates the threshold, half is measured"
    )
    precision: str = option(
        "float32",
        "of the dense product; bfloat16 only nominates the matches, whose values and gradients stay float32",
        choices=("float32", "bfloat16"),
    )
    pool: float = option(1024.0, "MiB of float32 activations that are shuffled at once; twice as much is held")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if value is not None and f.type in (int, int | None):  # numpy's integers have no place in JSON
                object.__setattr__(self, f.name, operator.index(value))
            elif value is not None and f.type in (float, float | None):
                object.__setattr__(self, f.name, float(value))
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
        if self.d_sae < 1:
            raise ValueError(f"d_sae must be at least 1, got {self.d_sae}")
        if not 0 < self.k <= self.d_sae:
            raise ValueError(f"k must be in (0, d_sae={self.d_sae}], got {self.k:g}")
        if self.allocation == "token" and self.k != int(self.k):
            raise ValueError(f"token choice gives every token the same whole number of matches, got k={self.k:g}")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2, since a single token has no variance, got {self.batch}")
        if self.tokens < self.batch:
            raise ValueError(f"tokens must be at least one batch ({self.batch}), got {self.tokens}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if not 0 < self.pool < float("inf"):
            raise ValueError(f"pool must be positive, in MiB, got {self.pool}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be in (0, 1), got {self.holdout}")
        if not 1 <= self.slack < 1e12:
            raise ValueError(f"slack must be in [1, 1e12), at 1 every column is full, got {self.slack}")
        if self.slack_start is not None and not self.slack <= self.slack_start < 1e12:
            raise ValueError(f"slack_start must be in [slack={self.slack}, 1e12), got {self.slack_start}")
        if (self.exponent is None) != (self.offset is None) and self.exponent != 0:
            raise ValueError("exponent and offset go together; give both, or neither to have them fitted")
        if self.exponent is not None and not (0 <= self.exponent <= 10 and 0 <= (self.offset or 0) < 1e12):
            raise ValueError(
                f"exponent must be in [0, 10] and offset in [0, 1e12), got {self.exponent} and {self.offset}"
            )
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be in [0, 1), got {self.warmup_share}")
        if self.warmup_share == 0 and self.exponent is None and self.allocation == "feature":
            raise ValueError("without warm-up there is nothing to fit: give exponent and offset, or warmup_share > 0")
        if self.d_sae < FIT_FEATURES and self.exponent is None and self.allocation == "feature":
            raise ValueError(
                f"a Zipf fit needs at least {FIT_FEATURES} features, got d_sae={self.d_sae}: give exponent and offset"
            )
        for name in ("lr", "aux_k", "dead_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not self.aux_weight >= 0:
            raise ValueError(f"aux_weight must be at least 0, got {self.aux_weight}")
