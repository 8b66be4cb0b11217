"""The settings of a training run: the command line makes its options from them, and the manifest records them."""

import operator
from dataclasses import dataclass, field, fields
from typing import Any

_OTHER_NAMES = {"topk": "token", "batchtopk": "mutual"}  # the names that other libraries use


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field that becomes an option of the command line.

    Args:
        default: the default value, or MISSING for a required option.
        help: the text that --help shows.
        metadata: more for the command line, such as `choices`.
    """
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run.

    A setting that is None is derived from the others: `recipe.py` says how, and the manifest records the result.

    >>> TrainConfig(k=8, tokens=100_000, allocation="BatchTopK").allocation
    'mutual'

    Raises:
        ValueError: a value is out of its range; the message names the setting.
    """

    allocation: str = option(
        "mutual",
        "who competes for the matches: each token alone (topk), the whole batch (batchtopk), or features with a limit",
        choices=("token", "mutual", "feature", *_OTHER_NAMES),
    )
    k: float = option(32.0, "matches (active features) a token gets on average; a whole number for token choice")
    d_sae: int | None = option(None, "features in the dictionary [eight times d_in]")
    tokens: int = field(metadata={"help": "tokens to train on, repeats counted"})
    batch: int = option(2048, "tokens a step; mutual and feature choice share out the matches of one batch")
    seed: int = option(0, "of the initial weights, the split and the order of tokens; equal seeds give equal runs")
    lr: float | None = option(None, "Adam's peak step size [derived from d_sae and the number of steps]")
    aux: str = option(
        "zipf", "auxiliary loss over under-used features, dead features, or none", choices=("zipf", "dead", "none")
    )
    slack: float = option(3.0, "feature choice: most matches of a feature over its share of them; 1 is strict, >= 1")
    exponent: float | None = option(None, "feature choice: Zipf exponent of the shares, 0 is uniform [fitted]")
    offset: float | None = option(
        None, "feature choice: Zipf-Mandelbrot offset of the shares, in ranks [fitted, or 0 with an exponent]"
    )
    warmup_share: float | None = option(
        None,
        "feature choice: share of the run that is mutual choice, to rank features by use [0.4, or 0 with an exponent]",
    )
    holdout: float = option(
        0.1, "share of the tokens kept from training: half calibrates the threshold, half is measured"
    )
    product_dtype: str = option(
        "float32",
        "of the dense product; bfloat16 only nominates the matches, whose values and gradients stay float32",
        choices=("float32", "bfloat16"),
    )
    pool: int = option(1024, "MiB of float32 activations that are shuffled at once; twice as much is held")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        known = self.allocation.lower()
        object.__setattr__(self, "allocation", _OTHER_NAMES.get(known, known))
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if value is not None and f.type in (int, int | None):  # JSON has no place for numpy's integers
                object.__setattr__(self, f.name, operator.index(value))
            elif value is not None and f.type in (float, float | None):
                object.__setattr__(self, f.name, float(value))
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
        if self.d_sae is not None:
            self.check_d_sae(self.d_sae)
        self._check_sizes()
        self._check_feature_choice()

    def check_d_sae(self, d_sae: int) -> None:
        """Raise ValueError where the other settings do not go with a number of features, given or derived."""
        from sae_runtime.bundle.quota import FIT_FEATURES  # here: --help needs no numpy

        if d_sae < 1:
            raise ValueError(f"d_sae must be at least 1, got {d_sae}")
        if not 0 < self.k <= d_sae:
            raise ValueError(f"k must be in (0, d_sae={d_sae}], got {self.k:g}")
        if d_sae < FIT_FEATURES and self.exponent is None and self.allocation == "feature":
            raise ValueError(f"a Zipf fit needs at least {FIT_FEATURES} features, got d_sae={d_sae}: give an exponent")

    def _check_sizes(self) -> None:
        if not 0 < self.k < float("inf"):
            raise ValueError(f"k must be positive, got {self.k:g}")
        if self.allocation == "token" and self.k != int(self.k):
            raise ValueError(f"token choice gives every token the same whole number of matches, got k={self.k:g}")
        if self.batch < 2:
            raise ValueError(f"batch must be at least 2, since a single token has no variance, got {self.batch}")
        if self.tokens < self.batch:
            raise ValueError(f"tokens must be at least one batch ({self.batch}), got {self.tokens}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.pool < 1:
            raise ValueError(f"pool must be at least 1, in MiB, got {self.pool}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be in (0, 1), got {self.holdout}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    def _check_feature_choice(self) -> None:
        if not 1 <= self.slack < 1e12:
            raise ValueError(f"slack must be in [1, 1e12), at 1 every column is full, got {self.slack}")
        if self.exponent is None and self.offset is not None:
            raise ValueError(f"an offset belongs to an exponent, got offset={self.offset} alone; give the exponent too")
        if self.exponent is not None and not (0 <= self.exponent <= 10 and 0 <= (self.offset or 0) < 1e12):
            raise ValueError(
                f"exponent must be in [0, 10] and offset in [0, 1e12), got {self.exponent} and {self.offset}"
            )
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be in [0, 1), got {self.warmup_share}")
        if self.warmup_share == 0 and self.exponent is None and self.allocation == "feature":
            raise ValueError("without warm-up there is nothing to fit: give an exponent, or warmup_share > 0")
