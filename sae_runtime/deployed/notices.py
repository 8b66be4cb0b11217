"""What a deployed model tells beside its answers."""

import warnings
from collections.abc import Sequence

from sae_runtime.text.tokens import Tokens


class LeftOutWarning(UserWarning):
    """Texts are longer than the model reads, and the rest of them was left out."""


class AssumedPoolingWarning(UserWarning):
    """The folder does not say how a text becomes a vector, and the mean was taken."""


def tell_left_out(tokens: Sequence[Tokens]) -> None:
    """Warn once of all texts whose end was left out, in the name of the caller's caller.

    >>> tell_left_out([])
    """
    cut = [number for number, each in enumerate(tokens) if each.left_out]
    if cut:
        first = tokens[cut[0]]
        warnings.warn(
            f"{len(cut)} of {len(tokens)} texts are longer than {len(first)} tokens and were cut: text {cut[0]} by "
            f"{first.left_out} tokens",
            LeftOutWarning,
            stacklevel=3,
        )
