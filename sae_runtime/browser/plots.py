"""Pictures of fitted SAEs, as PNG. Each draws one line for every name, in the same order and colour everywhere."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

# Okabe and Ito's palette, which people with any colour vision tell apart, less its yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")  # for more names than colours
_NEARLY_ALL = 0.9  # share of the tokens that have one number of active features


def density_by_rank(
    densities: Mapping[str, NDArray[np.float64]], laws: Mapping[str, NDArray[np.float64]] | None = None
) -> bytes:
    """Density of each feature by rank, on log axes; `laws` are Zipf laws of the same names.

    >>> density_by_rank({"sae": np.array([0.4, 0.1])})[1:4]
    b'PNG'
    """

    def draw(axes: Any) -> None:
        for (name, density), style in zip(densities.items(), _styles(), strict=False):
            falling = np.sort(density[density > 0])[::-1]
            axes.plot(np.arange(1, len(falling) + 1), falling, label=name, **style)
            if name in (laws or {}):
                law = (laws or {})[name]
                axes.plot(np.arange(1, len(law) + 1), law, color=style["color"], lw=1.0, ls=(0, (4, 2)))
        if laws:
            axes.plot([], [], color="#555555", lw=1.0, ls=(0, (4, 2)), label="Zipf law, fitted")
        if any((density > 0).any() for density in densities.values()):  # a log axis cannot be drawn without numbers
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.legend()

    return _picture("Feature density by rank", "rank of the feature", "share of tokens on which it is active", draw)


def active_features(l0: Mapping[str, NDArray[np.int64]]) -> bytes:
    """How many tokens have how many active features, as served; `l0` counts the tokens with 0, 1, 2, ... of them."""

    def draw(axes: Any) -> None:
        shares = {name: counts / max(counts.sum(), 1) for name, counts in l0.items()}
        longest = max(int(np.searchsorted(share.cumsum(), 0.999)) for share in shares.values()) + 1
        for (name, share), style in zip(shares.items(), _styles(), strict=False):
            commonest = int(share.argmax())
            if share[commonest] > _NEARLY_ALL:  # one tall bar would hide the others
                axes.axvline(commonest, label=f"{name}: {share[commonest]:.1%} have {commonest}", **style)
            else:
                line = np.pad(share, (0, max(longest + 1 - len(share), 0)))[: longest + 1]
                axes.plot(line, drawstyle="steps-mid", label=name, **style)
        axes.set_xlim(0, longest)
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()

    return _picture("Active features per token, as served", "active features", "share of tokens", draw)


def largest_cosines(histograms: Mapping[str, NDArray[np.int64]]) -> bytes:
    """How many features have how large a cosine to their nearest feature; each counts bins over [-1, 1]."""

    def draw(axes: Any) -> None:
        lowest = 1.0
        for (name, counts), style in zip(histograms.items(), _styles(), strict=False):
            edges = np.linspace(-1, 1, len(counts) + 1)
            axes.stairs(counts / max(counts.sum(), 1), edges, label=name, **style)
            lowest = min(lowest, float(edges[np.flatnonzero(counts)[0]]))
        axes.set_xlim(min(lowest, 0.0), 1)
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()

    return _picture("Decoder redundancy", "cosine to the most similar other feature", "share of features", draw)


def training_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Fraction of variance unexplained over training, by each allocation's own rule; lines of `train --metrics`."""

    def draw(axes: Any) -> None:
        for (name, lines), style in zip(metrics.items(), _styles(), strict=False):
            axes.plot([line["tokens"] for line in lines], [line["fvu"] for line in lines], label=name, **style)
        if any(line["fvu"] > 0 for lines in metrics.values() for line in lines):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("{x:.2f}")
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f}k")
        axes.legend()

    return _picture("Training", "tokens seen", "fraction of variance unexplained", draw)


def _styles() -> Iterator[dict[str, Any]]:
    number = 0
    while True:
        dash, colour = divmod(number, len(_COLOURS))
        yield {"color": _COLOURS[colour], "lw": 1.8, "ls": _DASHES[dash % len(_DASHES)]}
        number += 1


def _picture(title: str, x: str, y: str, draw: Callable[[Any], None]) -> bytes:
    figure = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    draw(axes)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # of a name in a script that the font lacks: it shows boxes
        figure.savefig(png, format="png", dpi=150)
    return png.getvalue()
