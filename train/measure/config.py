"""The settings of an evaluation. Nothing here imports torch, so the command line can show its help without it."""

from dataclasses import dataclass

from sae_runtime.train.settings import check_settings, option


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which rows to evaluate on, and how many of them share their matches.

    Raises:
        ValueError: a value is out of its range.

    >>> EvaluateConfig(tokens=1)
    Traceback (most recent call last):
    ValueError: tokens must be at least 2, got 1
    """

    rows: str = option(
        "auto",
        "held-out: those that training measured on; all; auto: held-out where these activations were trained on",
        choices=("auto", "held-out", "all"),
    )
    tokens: int | None = option(None, "rows to evaluate on at most, drawn at random", least=2)
    batch: int | None = option(
        None, "tokens that share their matches under the batch rule [as in training, else 2048]", least=2
    )
    max_norm: float | None = option(
        None,
        "leave out rows whose norm exceeds this multiple of the median norm; none: keep all [the bundle's rule, else "
        "10]",
        least=1,
        or_none=True,
    )
    seed: int = option(0, "of the draw of --tokens rows", least=0)
    device: str | None = option(None, "torch device [cuda if there is one, else cpu]")

    def __post_init__(self) -> None:
        check_settings(self)
