"""The settings of a training run: the command line makes its options from them, and the manifest records them."""

import math
from dataclasses import MISSING, dataclass

from sae_runtime.train.settings import check_settings, option

_OTHER_NAMES = {"topk": "token", "batchtopk": "mutual"}  # the names that other libraries use


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run.

    A setting that is None follows from the others: `recipe.derive` computes it, and the manifest records the result.

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
    tokens: int = option(MISSING, "tokens to train on, repeats counted")
    batch: int = option(2048, "tokens a step; mutual and feature choice share out the matches of one batch", least=2)
    seed: int = option(
        0, "of the initial weights, the split and the order of tokens; equal seeds give equal runs", least=0
    )
    lr: float | None = option(None, "Adam's peak step size [derived from d_sae and the number of steps]")
    aux: str = option(
        "zipf", "auxiliary loss over under-used features, dead features, or none", choices=("zipf", "dead", "none")
    )
    slack: float = option(3.0, "feature choice: largest density of a feature over its quota; 1 is strict, >= 1")
    exponent: float | None = option(None, "feature choice: Zipf exponent of the quotas, 0 is uniform [fitted]")
    offset: float | None = option(
        None, "feature choice: Zipf-Mandelbrot offset of the quotas, in ranks [fitted, or 0 with an exponent]"
    )
    warmup_share: float | None = option(
        None,
        "feature choice: share of the run that is mutual choice, to rank features by use [0.4, or 0 with an exponent]",
    )
    holdout: float = option(
        0.1, "share of the tokens kept from training: half calibrates the threshold, half is measured"
    )
    max_norm: float | None = option(
        10.0,
        "leave out rows whose norm exceeds this multiple of the median norm, such as attention sinks; none: keep all",
        least=1,
        or_none=True,
    )
    product_dtype: str = option(
        "float32",
        "of the dense product; bfloat16 only nominates the matches, whose values and gradients stay float32",
        choices=("float32", "bfloat16"),
    )
    pool: int = option(1024, "MiB of float32 activations that are shuffled at once; twice as much is held", least=1)
    device: str | None = option(None, "torch device [cuda if there is one, else cpu]")

    def __post_init__(self) -> None:
        known = self.allocation.lower()
        object.__setattr__(self, "allocation", _OTHER_NAMES.get(known, known))
        if self.max_norm == math.inf:
            object.__setattr__(self, "max_norm", None)  # JSON has no infinity
        check_settings(self)
        if self.d_sae is not None:
            self.check_d_sae(self.d_sae)
        k, exponent, offset = self.k, self.exponent, self.offset
        for is_right, expected in (
            (0 < k < float("inf"), f"k must be positive, got {k:g}"),
            (
                self.allocation != "token" or k.is_integer(),
                f"token choice gives every token the same whole number of matches, got k={k:g}",
            ),
            (self.tokens >= self.batch, f"tokens must be at least one batch ({self.batch}), got {self.tokens}"),
            (0 < self.holdout < 1, f"holdout must be in (0, 1), got {self.holdout}"),
            (self.lr is None or self.lr > 0, f"lr must be positive, got {self.lr}"),
            (1 <= self.slack < 1e12, f"slack must be in [1, 1e12), at 1 every column is full, got {self.slack}"),
            (
                exponent is not None or offset is None,
                f"an offset belongs to an exponent, got offset={offset} alone; give the exponent too",
            ),
            (
                0 <= (exponent or 0) <= 10 and 0 <= (offset or 0) < 1e12,
                f"exponent must be in [0, 10] and offset in [0, 1e12), got {exponent} and {offset}",
            ),
            (0 <= (self.warmup_share or 0) < 1, f"warmup_share must be in [0, 1), got {self.warmup_share}"),
            (
                self.warmup_share != 0 or exponent is not None or self.allocation != "feature",
                "without warm-up there is nothing to fit: give an exponent, or warmup_share > 0",
            ),
        ):
            if not is_right:
                raise ValueError(expected)

    def check_d_sae(self, d_sae: int) -> None:
        """Check a number of features, given or derived, against the other settings.

        Raises:
            ValueError: there is no feature, k is above d_sae, or the features are too few to fit a Zipf law.
        """
        from sae_runtime.bundle.quota import FIT_FEATURES  # here: --help needs no numpy

        if d_sae < 1:
            raise ValueError(f"d_sae must be at least 1, got {d_sae}")
        if not 0 < self.k <= d_sae:
            raise ValueError(f"k must be in (0, d_sae={d_sae}], got {self.k:g}")
        if d_sae < FIT_FEATURES and self.exponent is None and self.allocation == "feature":
            raise ValueError(f"a Zipf fit needs at least {FIT_FEATURES} features, got d_sae={d_sae}: give an exponent")
