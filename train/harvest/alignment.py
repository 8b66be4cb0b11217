"""Whether each row of an activation is that of its token: found out by a few short passes, whatever the model.

A model may pad its input, put the time first, mix padding into its rows, shift or merge tokens, or draw random numbers.
What can be read in another way is; the rest is refused, because its rows could not be labelled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHORT, _LONG = 6, 9  # tokens of the texts; the passes must not have as many texts as tokens

Read = Callable[[Tensor, Tensor], list[Tensor]]
"""Activations at hooks, of three dimensions each, for ids and the mask of real tokens, both [batch, time]."""


@dataclass(frozen=True)
class Alignment:
    """How to read a model so that each row is its token's.

    Attributes:
        time_first: for each hook, whether its activations are [time, batch, d_in].
        multiple: ids have to be padded to a multiple of this number of tokens, as the model would do by itself.
        alone: texts must not share a pass, because their rows would depend on each other or on padding.
    """

    time_first: tuple[bool, ...]
    multiple: int = 1
    alone: bool = False

    def rows(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """The activations of a pass, as the model gives them, in the order [batch, time, d_in]."""
        return [x.transpose(0, 1) if first else x for x, first in zip(raw, self.time_first, strict=True)]

    def padded(self, time: int) -> int:
        """The number of tokens with padding.

        >>> Alignment((False,), multiple=8).padded(9)
        16
        """
        return -(-time // self.multiple) * self.multiple


def find_alignment(hooks: Sequence[str], read: Read, tokens: Tensor, pad: int = 0) -> Alignment:
    """Find out how a model's rows belong to tokens.

    Args:
        hooks: their names, for messages.
        read: runs the model.
        tokens: ids of different tokens, [n]; at least two.
        pad: the id of padding.

    Raises:
        ValueError: a hook has not one row for each token, a row does not depend on its token, or the rows of a text
            differ each time.

    >>> table = torch.randn(5, 3)
    >>> find_alignment(["wte"], lambda ids, real: [table[ids]], torch.arange(5))
    Alignment(time_first=(False,), multiple=1, alone=False)
    >>> find_alignment(["wte"], lambda ids, real: [table[ids.roll(1)]], torch.arange(5))
    Traceback (most recent call last):
    ValueError: the row of a token at wte does not depend on that token, so rows and tokens do not match; hook ...
    """
    number = torch.arange(_LONG + 1, device=tokens.device) % len(tokens)
    text, other = tokens[number[:-1]], tokens[number[1:]]
    texts = text[:_SHORT].repeat(_SHORT + 2, 1)  # the last equals the first, which shows what rounding does
    for place in range(_SHORT):
        texts[place + 1, place] = other[place]
    raw = read(texts, torch.ones_like(texts, dtype=torch.bool))
    time_first = tuple(x.shape[0] != len(texts) == x.shape[1] for x in raw)
    layout = Alignment(time_first, max(x.shape[1] for x in Alignment(time_first).rows(raw)))
    if layout.multiple <= _SHORT:
        layout = Alignment(time_first)

    def rows(*windows: Tensor) -> list[Tensor]:
        """The rows of texts that share a pass, each [batch, time, d_in]."""
        time = layout.padded(max(map(len, windows)))
        ids = torch.stack([torch.nn.functional.pad(ids, (0, time - len(ids)), value=pad) for ids in windows])
        real = torch.stack([torch.arange(time, device=ids.device) < len(window) for window in windows])
        given = layout.rows(read(ids, real))
        for hook, x in zip(hooks, given, strict=True):
            if x.shape[:2] != ids.shape:
                raise ValueError(
                    f"{hook} gives {list(x.shape)}, expected [{len(ids)}, {time}, d_in], a row for each token; hook a "
                    "layer"
                )
        return given

    longer = text if layout.multiple == 1 else text.repeat(layout.multiple // _LONG + 1)[: layout.multiple + 3]
    mixed, padded = rows(*texts), rows(text[:_SHORT], longer)
    alone, again = rows(text[:_SHORT]), rows(text[:_SHORT])
    apart = False
    for hook, a, b, x, y in zip(hooks, mixed, padded, alone, again, strict=True):
        if _differences(x[0], y[0]).median() > 1:  # on some devices rounding differs, and sends a row to another expert
            raise ValueError(f"{hook} gives other rows each time it reads the same text; hook another model or module")
        rounding = (a[0] - a[-1]).abs().max()
        if any((a[0, t] - a[t + 1, t]).abs().max() <= 4 * rounding for t in range(_SHORT)):
            raise ValueError(
                f"the row of a token at {hook} does not depend on that token, so rows and tokens do not match; hook "
                "another module"
            )
        apart |= any(bool((_differences(x[0, :_SHORT], shared[0, :_SHORT]) > 1).any()) for shared in (a, b))
    return Alignment(layout.time_first, layout.multiple, apart)


def _differences(x: Tensor, y: Tensor) -> Tensor:
    """How far apart the rows of x and y [time, d_in] are, in units of what rounding explains."""
    tolerance = 1e-3 if x.dtype == torch.float32 else 0.05
    x, y = x.float(), y.float()
    difference: Tensor = (x - y).norm(dim=1) / x.norm(dim=1).clamp_min(1e-30) / tolerance
    return difference
