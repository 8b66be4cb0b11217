"""Batches of texts of about one length, and the arrays that a graph takes for one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.deployed.host_inputs import HostInputs

ROUNDS_BY_BATCH = "DynamicQuantizeLinear"  # an operator by which a text changes with the others of its batch
TOKENS = 256  # of a batch, with padding; larger ones leave a CPU core's cache, and need more memory
TOKENS_OF_DEVICE = 16_384  # likewise, where a GPU computes
_PADDING = 0.1  # the most of a batch that may be padding


@dataclass(frozen=True)
class Batch:
    """Texts for one run.

    Attributes:
        texts: the number of each text.
        ids: of their tokens, padded behind, [b, t]; b may be more than the texts, where a graph takes one size alone.
        mask: 1 for tokens and 0 for padding, [b, t].
        lengths: tokens of each text.
    """

    texts: list[int]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    lengths: list[int]

    @property
    def is_padded(self) -> bool:
        """Whether there is padding."""
        return min(self.lengths) < self.ids.shape[1] or len(self.texts) < len(self.ids)


def batches(
    ids: Sequence[NDArray[np.int64]], inputs: HostInputs, *, pad: int, tokens: int = TOKENS, pads: bool = True
) -> Iterator[Batch]:
    """The texts in batches of about one length, the longest first.

    Padding stands behind the texts. There no causal model sees it, and positions count as without it. A batch that
    needs too much memory fails at once, since the longest texts come first.

    Args:
        ids: of each text's tokens, at least one.
        inputs: of the graph.
        pad: the id of padding.
        tokens: the most tokens of a batch, with padding; a longer text is a batch alone.
        pads: whether texts of different lengths may share a batch.

    Raises:
        ValueError: a text does not fit the only length that the graph takes.

    >>> from sae_runtime.deployed.host_inputs import Port
    >>> port = Port("ids", np.dtype(np.int64), ("b", "t"))
    >>> inputs = HostInputs(ids=port, mask=port)
    >>> [batch.ids.tolist() for batch in batches([np.array([5]), np.array([6, 7, 8])], inputs, pad=0)]
    [[[6, 7, 8]], [[5]]]
    """
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    pads = pads and inputs.takes_padding
    begin = 0
    while begin < len(order):
        longest = len(ids[order[begin]])
        most = inputs.batch or max(1, tokens // longest)
        end, held = begin + 1, longest
        while end < len(order) and end - begin < most:
            length = len(ids[order[end]])
            padding = 1 - (held + length) / (longest * (end - begin + 1))
            if length < longest and (not pads or padding > _PADDING):
                break
            end, held = end + 1, held + length
        yield _batch(order[begin:end], ids, inputs, pad, pads)
        begin = end


def _batch(texts: list[int], ids: Sequence[NDArray[np.int64]], inputs: HostInputs, pad: int, pads: bool) -> Batch:
    lengths = [len(ids[number]) for number in texts]
    time = inputs.time or lengths[0]
    if lengths[0] > time or (min(lengths) < time and not pads):
        raise ValueError(
            f"the graph takes texts of exactly {time} tokens and no shorter ones, and text {texts[-1]} has "
            f"{lengths[-1]}; export it again with a length of its own for each call"
        )
    if len(texts) == 1 and inputs.batch is None and lengths[0] == time:
        alone = ids[texts[0]][None]
        return Batch(texts, alone, np.ones_like(alone), lengths)
    shape = inputs.batch or len(texts), time
    padded, mask = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    for row, (number, length) in enumerate(zip(texts, lengths, strict=True)):
        padded[row, :length] = ids[number]
        mask[row, :length] = 1
    padded[len(texts) :], mask[len(texts) :] = padded[0], mask[0]  # rows of one text are nobody's
    return Batch(texts, padded, mask, lengths)


def of_tokens(shape: Sequence[int | str | None], ids: Sequence[int | str | None]) -> bool:
    """Whether an output of this declared shape has a row for each token: [b, t, ...].

    >>> of_tokens(("batch", "time", 384), ("batch", "time")), of_tokens(("batch", 384), ("batch", "time"))
    (True, False)
    """
    if len(shape) > 2 and (shape[1] == ids[1] or not isinstance(shape[1], int)):
        return True
    return len(shape) == 2 and isinstance(shape[1], str) and shape[1] == ids[1]
