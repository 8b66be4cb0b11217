"""Compare the places of a spliced graph with another reader of the same model, such as torch hooks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.splices import Spliced
from sae_runtime.exports.splice.plausibility import features
from sae_runtime.exports.splice.short_run import Window, values_of
from sae_runtime.exports.witness import largest_error

Rows = NDArray[np.float32]
Truth = Callable[[Window], Sequence[Rows]]
"""From the ids of a text to the activations at every hook, each [t, d_in], and the model's output [t, width]."""


@dataclass(frozen=True)
class Agreement:
    """How the place of one SAE compares with the truth.

    Attributes:
        name: of the splice.
        jaccard: the share of the active features of either side that both have.
        activations: the largest difference of the activations, relative to the largest activation.
        features: the same of the features' values.
        outputs: the same of the model's output; None where the graph's first output has another shape.
    """

    name: str
    jaccard: float
    activations: float
    features: float
    outputs: float | None


def agreement(
    graph: Path, placed: Sequence[tuple[Spliced, Bundle]], windows: Iterable[Window], truth: Truth
) -> list[Agreement]:
    """Compare each place of a spliced graph, read without edits, with the truth on texts.

    Args:
        graph: the spliced graph.
        placed: the SAEs in it, with their bundles.
        windows: the ids of texts.
        truth: gives the activations at the places, in the order of `placed`, and the model's output.

    Raises:
        CannotRun: the graph cannot be run on tokens alone.
        ValueError: the truth has activations of another shape.
    """
    texts = list(windows)
    names = [spliced.tensor for spliced, _ in placed]
    ours = [[x[0] for x in values] for values in values_of(graph, names, texts, whole=True)]
    theirs = [truth(window) for window in texts]
    outputs = None
    if all(a[-1].shape == b[-1].shape for a, b in zip(ours, theirs, strict=True)):
        outputs = _error([a[-1] for a in ours], [b[-1] for b in theirs])
    found = []
    for number, (spliced, bundle) in enumerate(placed):
        x, want = [a[number].astype(np.float32) for a in ours], [b[number] for b in theirs]
        for a, b in zip(x, want, strict=True):
            if a.shape != b.shape:
                raise ValueError(
                    f"{spliced.hook} is {list(a.shape)} in the graph and {list(b.shape)} in the model; name the model "
                    "that the host was made of"
                )
        f, wanted = [features(bundle, a) for a in x], [features(bundle, b) for b in want]
        both = sum(int(((a > 0) & (b > 0)).sum()) for a, b in zip(f, wanted, strict=True))
        either = sum(int(((a > 0) | (b > 0)).sum()) for a, b in zip(f, wanted, strict=True))
        found.append(
            Agreement(spliced.name, both / either if either else 1.0, _error(x, want), _error(f, wanted), outputs)
        )
    return found


def _error(got: Sequence[NDArray[np.floating]], want: Sequence[NDArray[np.floating]]) -> float:
    """The largest difference in all texts, relative to the largest number wanted in any."""
    return largest_error(np.concatenate(want), np.concatenate(got))
