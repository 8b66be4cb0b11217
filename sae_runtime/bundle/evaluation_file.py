"""The figures of `evaluate`: dataclasses, and the JSON file that `evaluate` writes and `report` reads."""

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
from sae_runtime.bundle.typed_json import read_file

SCHEMA_VERSION = 1
_LARGEST = 1 << 28  # bytes; a million features have 20 MB of figures


@dataclass(frozen=True, kw_only=True)
class Zipf:
    """The Zipf-Mandelbrot law that `quota.fit` fits to densities."""

    exponent: float
    offset: float
    r_squared: float


@dataclass(frozen=True, kw_only=True)
class AllRows:
    """The figures of one rule over all rows, those of massive norm too."""

    tokens: int
    fvu: float | None  # None for a transcoder without its target, or where features overflow float32
    explained_variance: float | None
    l0: float
    dead: float


@dataclass(frozen=True, kw_only=True)
class RuleEvaluation:
    """The figures of one rule. Quantiles are over tokens; their keys are levels as text, such as "0.05"."""

    batch: int | None  # tokens that share their matches; None: each token for itself
    fvu: float | None  # None, as the next two, for a transcoder without its target
    explained_variance: float | None  # 1 - FVU
    token_fvu: Mapping[str, float] | None  # quantiles of |x - x_hat|^2 / |x - mean|^2 of a token
    l0: float  # mean
    l0_quantiles: Mapping[str, float]
    l0_tokens: tuple[int, ...]  # number of tokens with 0, 1, 2, ... active features
    dead: float  # share of the features that are active on no token
    under_used: float  # share of the features below a tenth of the density that the law gives their rank
    zipf: Zipf | None  # None if fewer than 20 features are active
    matches: tuple[int, ...]  # of each feature
    largest: tuple[float, ...] = ()  # largest activation of each feature; empty in files of older versions
    with_left_out: AllRows | None = None  # None if no row is left out


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """The cosine of each feature's row of W_dec to the most similar other row, and the effective rank of W_dec."""

    median: float
    high: float  # 99 % of the features are below it
    nearly_equal: float  # share of the features with a cosine above 0.9
    effective_rank: float  # between 1 and min(d_out, d_sae)
    histogram: tuple[int, ...]  # features in each of 100 bins of equal width over [-1, 1]


@dataclass(frozen=True, kw_only=True)
class HostLoss:
    """The loss of a host model if its activations are replaced: by a rule's reconstructions, by the mean or by zeros.

    The keys of `replaced` are "served", "batch", "mean" and "zero". For a causal language model each value has
    cross_entropy and kl. For another model each value has embedding_cosine and token_cosine, and with the suffix _low
    the quantile of each at 0.05. The values of the two rules also have fvu and explained_variance and, for a causal
    language model, loss_recovered_mean and loss_recovered_zero: the share of the loss that this ablation costs and the
    reconstruction saves. A share is missing if its ablation costs nothing.
    """

    model: str
    hook: str
    text: tuple[str, ...]
    tokens: int  # number of replaced tokens
    windows: int
    special: bool  # whether special tokens were replaced too
    batch: float  # mean number of tokens in a batch of the batch rule
    cross_entropy: float | None  # of the unchanged model; None unless it is a causal language model
    replaced: Mapping[str, Mapping[str, float]]
    max_norm: float | None = None  # tokens above this multiple of the median norm keep the model's own activation
    left_out: int = 0  # number of these tokens; no figure counts them
    with_left_out: "HostLoss | None" = None  # the figures if these tokens are replaced too; None if there are none


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All figures of an SAE: by its rules on activations, of its decoder, and of a host model."""

    bundle: str  # its path, as the user gave it
    name: str  # name of its folder
    architecture: Architecture
    allocation: Allocation | None
    model: str | None
    hook: str | None
    trained_tokens: int | None  # each pass over a token counts; None if the manifest does not tell
    activations: str
    rows: str  # "held-out" or "all"
    tokens: int  # those that are left out are not counted
    served: RuleEvaluation
    batch: RuleEvaluation | None  # None if the SAE has no batch rule
    decoder: Redundancy
    host: HostLoss | None = None
    max_norm: float | None = None  # rows above this multiple of the median norm are left out; None: no limit
    left_out: int = 0  # number of these rows
    schema_version: int = SCHEMA_VERSION


def to_json(evaluation: Evaluation) -> str:
    """The text of the file, which `read_evaluation` reads back."""
    return json.dumps(dataclasses.asdict(evaluation), allow_nan=False) + "\n"


def read_evaluation(path: Path) -> Evaluation:
    """Read the file that `evaluate -o` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder, such as a bundle, or the file has another format.

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
        evaluation: Evaluation = read_file(Evaluation, path, "the evaluation", version=SCHEMA_VERSION, most=_LARGEST)
        _check(evaluation)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; make it again with sae-runtime evaluate -o {path}") from error
    return evaluation


def _check(evaluation: Evaluation) -> None:
    """Raise ValueError if a part of the figures that `report` draws is missing or cannot be drawn."""
    rules = [rule for rule in (evaluation.served, evaluation.batch) if rule is not None]
    features = evaluation.architecture.d_sae
    whole = (
        evaluation.tokens >= 1
        and (not evaluation.left_out or evaluation.max_norm is not None)
        and all({"0.05", "0.95"} <= rule.l0_quantiles.keys() for rule in rules)
        and all(rule.l0_tokens and len(rule.matches) == features for rule in rules)
        and any(evaluation.decoder.histogram)
        and all(count >= 0 for rule in rules for count in (*rule.l0_tokens, *rule.matches))
        and min(evaluation.decoder.histogram) >= 0
    )
    if not whole:
        raise ValueError("the figures do not fit one another")


def law_by_rank(law: Zipf, density: NDArray[np.float64]) -> NDArray[np.float64]:
    """The density that a law gives each rank, with the same total as the measured densities: both [d_sae].

    >>> law_by_rank(Zipf(exponent=0.0, offset=0.0, r_squared=1.0), np.array([0.5, 0.25, 0.0]))
    array([0.25, 0.25, 0.25])
    """
    total = min(float(density.sum()), float(len(density)))
    return quota.quotas(Quota(exponent=law.exponent, offset=law.offset), total, len(density))
