"""Pictures of fitted SAEs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's palette, which people with any colour vision tell apart; one colour an allocation, everywhere.
COLOURS = {"token": "#0072B2", "mutual": "#D55E00", "feature": "#009E73"}
LABELS = {"token": "token choice", "mutual": "mutual choice", "feature": "feature choice"}


def density_by_rank(
    path: Path, densities: Mapping[str, NDArray[np.float64]], law: NDArray[np.float64] | None = None
) -> None:
    """Share of tokens on which each feature fires, by rank, on log axes; `law` is feature choice's fitted share."""
    with _figure(path, "Feature density by rank", "rank of the feature", "share of tokens on which it fires") as axes:
        for kind, density in densities.items():
            falling = np.sort(density[density > 0])[::-1]
            axes.plot(np.arange(1, len(falling) + 1), falling, color=COLOURS[kind], lw=1.8, label=LABELS[kind])
        if law is not None:
            axes.plot(
                np.arange(1, len(law) + 1), law, color="#555555", lw=1.2, ls="--", label="Zipf law fitted for quotas"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend()


def active_features(path: Path, l0: Mapping[str, NDArray[np.int64]], k: float) -> None:
    """How many tokens have how many active features, as served."""
    with _figure(path, "Active features per token, as served", "active features", "share of tokens") as axes:
        longest = int(max(np.quantile(counts, 0.999) for counts in l0.values())) + 1
        for kind, counts in l0.items():
            share = np.bincount(counts, minlength=longest + 1)[: longest + 1] / len(counts)
            if kind == "token":  # nearly all tokens have k: one tall bar would hide the others
                axes.axvline(k, color=COLOURS[kind], lw=1.8, label=f"{LABELS[kind]}: {share[round(k)]:.1%} have {k:g}")
            else:
                axes.plot(share, color=COLOURS[kind], lw=1.8, drawstyle="steps-mid", label=LABELS[kind])
        axes.set_xlim(0, longest)
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.legend()


def training_curves(path: Path, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Fraction of variance unexplained over training, by each allocation's own rule."""
    with _figure(path, "Training", "tokens seen", "fraction of variance unexplained") as axes:
        for kind, lines in metrics.items():
            x = [line["tokens"] for line in lines]
            axes.plot(x, [line["fvu"] for line in lines], color=COLOURS[kind], lw=1.8, label=LABELS[kind])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.yaxis.set_minor_formatter("{x:.2f}")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f}k")
        axes.legend()


@contextmanager
def _figure(path: Path, title: str, x: str, y: str) -> Iterator[Any]:
    figure = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    yield axes
    figure.savefig(path, dpi=150)
