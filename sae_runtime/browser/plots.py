"""Pictures of fitted SAEs, as SVG. Each draws one line for every SAE, with the same colours in every picture."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib.figure
import numpy as np
from matplotlib.ticker import LogFormatter, PercentFormatter
from numpy.typing import NDArray

from sae_runtime.browser.svg import svg
from sae_runtime.core.printable import printable

# After Okabe and Ito's palette for any colour vision; each is told from a white page and from a dark one. Black stands
# for the colour of the page's text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C673A0", "#B47C00", "black")
_DASHES = ("-", "--", ":")  # for more names than colours
_LONGEST = 60  # letters of a name in a legend
_NEARLY_ALL = 0.9  # share of the tokens that have one number of active features
_LAW = {"lw": 1.0, "ls": (0, (4, 2))}
T = TypeVar("T")


def density_by_rank(
    densities: Mapping[str, NDArray[np.float64]], laws: Mapping[str, NDArray[np.float64]] | None = None
) -> str:
    """The density of each feature by rank, on log axes.

    Args:
        densities: of each SAE, by name: [d_sae].
        laws: the Zipf law's density of each rank, for SAEs that have a law: [d_sae].

    >>> density_by_rank({"sae": np.array([0.4, 0.1])})[:5]
    '<svg '
    """
    axes = _axes("Feature density by rank", "rank of the feature", "share of tokens on which it is active")
    for name, density, style in _styled(densities):
        falling = np.sort(density[density > 0])[::-1]
        axes.plot(np.arange(1, len(falling) + 1), falling, label=_label(name), **style)
        if laws and name in laws:
            axes.plot(np.arange(1, len(laws[name]) + 1), laws[name], color=style["color"], **_LAW)
    if laws:
        axes.plot([], [], color="black", label="Zipf law, fitted", **_LAW)
    if any((density > 0).any() for density in densities.values()):  # a log axis needs a number above 0
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, form in ((axes.xaxis, "{:,.0f}"), (axes.yaxis, "{:.4g}%")):
            axis.set_major_formatter(_Plain(form))
            axis.set_minor_formatter(_Plain(form))
    return _svg(axes)


def active_features(l0: Mapping[str, NDArray[np.int64]]) -> str:
    """The distribution of the tokens over their numbers of active features, as served.

    Args:
        l0: how many tokens have 0, 1, 2, ... active features, of each SAE by name.

    >>> active_features({"sae": np.array([0, 3, 1])})[:5]
    '<svg '
    """
    axes = _axes("Active features per token, as served", "active features", "share of tokens")
    shares = {name: counts / max(counts.sum(), 1) for name, counts in l0.items()}
    longest = max(int(np.searchsorted(share.cumsum(), 0.999)) for share in shares.values()) + 1
    for name, share, style in _styled(shares):
        commonest = int(share.argmax())
        if share[commonest] > _NEARLY_ALL:  # one tall bar would hide the others
            axes.axvline(commonest, label=_label(name, f": {share[commonest]:.1%} have {commonest}"), **style)
        else:
            line = np.pad(share, (0, max(longest + 1 - len(share), 0)))[: longest + 1]
            axes.plot(line, drawstyle="steps-mid", label=_label(name), **style)
    axes.set(xlim=(0, longest), ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return _svg(axes)


def largest_cosines(histograms: Mapping[str, NDArray[np.int64]]) -> str:
    """The distribution of the features over their largest cosine to another feature.

    Args:
        histograms: how many features are in each of equal bins over [-1, 1], of each SAE by name.

    >>> largest_cosines({"sae": np.array([0, 0, 3, 1])})[:5]
    '<svg '
    """
    axes = _axes("Decoder redundancy", "cosine to the most similar other feature", "share of features")
    lowest = 0.0
    for name, counts, style in _styled(histograms):
        edges = np.linspace(-1, 1, len(counts) + 1)
        axes.stairs(counts / max(counts.sum(), 1), edges, label=_label(name), **style)
        lowest = min(lowest, float(edges[np.flatnonzero(counts)[0]]))
    axes.set(xlim=(lowest, 1), ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return _svg(axes)


def training_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """FVU over training, by the batch rule of each SAE.

    Args:
        metrics: lines of `train --metrics`, with `tokens` and `fvu`, of each SAE by name.

    >>> training_curves({"sae": [{"tokens": 1000, "fvu": 0.5}]})[:5]
    '<svg '
    """
    axes = _axes("Training", "tokens seen", "fraction of variance unexplained")
    for name, lines, style in _styled(metrics):
        axes.plot([line["tokens"] for line in lines], [line["fvu"] for line in lines], label=_label(name), **style)
    if any(line["fvu"] > 0 for lines in metrics.values() for line in lines):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f}k")
    return _svg(axes)


class _Plain(LogFormatter):
    """The labels of a log axis without powers, where matplotlib would set one."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = super().__call__(x, pos)
        return label and self._form.format(100 * x if self._form.endswith("%") else x)


def _styled(values: Mapping[str, T]) -> Iterator[tuple[str, T, dict[str, Any]]]:
    """Each name and value, and the style of its line."""
    for number, (name, value) in enumerate(values.items()):
        dash, colour = divmod(number, len(COLOURS))
        yield name, value, {"color": COLOURS[colour], "lw": 1.8, "ls": _DASHES[dash % len(_DASHES)]}


def _label(name: str, more: str = "") -> str:
    """The text of a line in the legend; the space keeps matplotlib from leaving out a name that begins with _."""
    return f" {printable(name if len(name) <= _LONGEST else name[: _LONGEST - 3] + '...')}{more}"


def _axes(title: str, x: str, y: str) -> Any:
    axes = matplotlib.figure.Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set(xlabel=x, ylabel=y, axisbelow=True)
    axes.grid(color="black", alpha=0.15, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(axes: Any) -> str:
    for text in axes.legend(frameon=False).get_texts():
        text.set_text(text.get_text().strip())
        text.set_parse_math(False)  # a $ in a name is no formula
    return svg(axes.figure, f"{axes.get_title(loc='left')}: {axes.get_ylabel()}, {axes.get_xlabel()}")
