"""What an evaluation can be told, without torch, so that the command line can show its help."""

from dataclasses import dataclass

from sae_runtime.train.config import option


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which rows to evaluate on, and how many share their matches.

    Raises:
        ValueError: a value is out of its range.

    >>> EvaluateConfig(tokens=1)
    Traceback (most recent call last):
    ValueError: tokens must be at least 2, since a single token has no variance, got 1
    """

    rows: str = option(
        "auto",
        "held-out: those that training measured on; all; auto: held-out where these activations were trained on",
        choices=("auto", "held-out", "all"),
    )
    tokens: int | None = option(None, "rows to evaluate on at most, drawn at random")
    batch: int | None = option(None, "tokens that share their matches under the batch rule [as in training, else 2048]")
    seed: int = option(0, "of the draw of --tokens rows")
    device: str | None = option(None, "torch device [cuda where there is one, else cpu]")

    def __post_init__(self) -> None:
        if self.rows not in ("auto", "held-out", "all"):
            raise ValueError(f"rows must be auto, held-out or all, got {self.rows!r}")
        for name in ("tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, since a single token has no variance, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
