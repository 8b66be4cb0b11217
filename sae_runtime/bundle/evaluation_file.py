"""What `evaluate` measures, as dataclasses and as the JSON file that it writes and `report` reads."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.bundle.quota import Quota
from sae_runtime.bundle.typed_json import read_versioned

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Zipf:
    """The Zipf-Mandelbrot law that `quota.fit` fits to the densities."""

    exponent: float
    offset: float
    r_squared: float


@dataclass(frozen=True, kw_only=True)
class RuleEvaluation:
    """What one rule achieves. Quantiles are over tokens, by their level as text, such as "0.05"."""

    batch: int | None  # tokens that share their matches; None: every token for itself
    fvu: float | None  # None for a transcoder whose target is not at hand, like the next two
    explained_variance: float | None  # 1 - FVU
    token_fvu: Mapping[str, float] | None  # quantiles of |x - x_hat|^2 / |x - mean|^2 of a token
    l0: float  # mean
    l0_quantiles: Mapping[str, float]
    l0_tokens: tuple[int, ...]  # how many tokens have 0, 1, 2, ... active features
    dead: float  # share of the features that are not active on any of these tokens
    under_used: float  # share with less than a tenth of the density that the law gives the rank, dead ones included
    zipf: Zipf | None  # None where fewer than 20 features are active
    matches: tuple[int, ...]  # tokens on which each feature is active


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """Cosines of every feature's decoder row to the row that is most like it, and in how many directions rows lie."""

    median: float
    high: float  # 99 % of the features are below
    nearly_equal: float  # share of the features above 0.9
    effective_rank: float  # of W_dec, between 1 and min(d_out, d_sae)
    histogram: tuple[int, ...]  # features in each of 100 bins of equal width over [-1, 1]


@dataclass(frozen=True, kw_only=True)
class HostLoss:
    """What a host model loses, by what replaces its activations: "served", "batch", "mean" or "zero".

    Of a causal language model each has cross_entropy and kl. Of any other model each has embedding_cosine and
    token_cosine, and of both the quantile below which 5 % lie, with the ending _low. The two rules also have fvu and
    explained_variance. Of a causal language model they have loss_recovered_mean and loss_recovered_zero too: the share
    of what the mean, or zeros, cost that the rule does not cost. One is left out where its ablation costs nothing.
    """

    model: str
    hook: str
    text: tuple[str, ...]
    tokens: int  # that were replaced
    windows: int
    special: bool  # whether special tokens are replaced too
    batch: float  # tokens that shared their matches under the batch rule, on average
    cross_entropy: float | None  # of the untouched model; None where it is no causal language model
    replaced: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an SAE is, what it achieves on activations, how much its decoder repeats itself, what a host model loses."""

    bundle: str  # its path, as it was given
    name: str  # of its folder
    architecture: Architecture
    allocation: Allocation | None
    model: str | None
    hook: str | None
    trained_tokens: int | None  # repeats counted; None where the manifest does not tell
    activations: str
    rows: str  # "held-out", never trained on, or "all"
    tokens: int
    served: RuleEvaluation
    batch: RuleEvaluation | None  # by the batch rule, where the SAE has one
    decoder: Redundancy
    host: HostLoss | None = None
    schema_version: int = SCHEMA_VERSION


def to_json(evaluation: Evaluation) -> str:
    """The text of the file."""
    return json.dumps(dataclasses.asdict(evaluation), allow_nan=False) + "\n"


def read_evaluation(path: Path) -> Evaluation:
    """Read the file that `evaluate -o` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, such as a bundle, or the file is another one.

    >>> read_evaluation(Path("nowhere.json"))
    Traceback (most recent call last):
    FileNotFoundError: nowhere.json does not exist; make it: sae-runtime evaluate BUNDLE -o nowhere.json
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, expected the JSON file of an evaluation; make it: sae-runtime evaluate {path} -o FILE"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make it: sae-runtime evaluate BUNDLE -o {path}")
    try:
        evaluation: Evaluation = read_versioned(Evaluation, path.read_bytes(), "the evaluation", version=SCHEMA_VERSION)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; make it again with sae-runtime evaluate -o {path}") from error
    return evaluation


def law_by_rank(law: Zipf, density: NDArray[np.float64]) -> NDArray[np.float64]:
    """The density that a law expects of each rank, for the same total as the measured densities: both [d_sae].

    >>> law_by_rank(Zipf(exponent=0.0, offset=0.0, r_squared=1.0), np.array([0.5, 0.25, 0.0]))
    array([0.25, 0.25, 0.25])
    """
    total = min(float(density.sum()), float(len(density)))
    return quota.quotas(Quota(exponent=law.exponent, offset=law.offset), total, len(density))
