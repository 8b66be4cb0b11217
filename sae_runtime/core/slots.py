"""Features as dense arrays of slots, as graphs take and give them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Slots = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows as graphs give them: indices and values [n, slots], in order of falling value. An unused slot has value 0."""


def joined_slots(parts: Sequence[Slots]) -> Slots:
    """The rows of all parts as one pair of arrays, with as many slots as the fullest row needs, but at least one.

    >>> one, two = (np.array([[3, 1]]), np.ones((1, 2), np.float32)), (np.array([[5]]), np.ones((1, 1), np.float32))
    >>> joined_slots([one, two])[0].tolist()
    [[3, 1], [5, 0]]
    """
    slots = max([1, *(int((values > 0).sum(axis=1).max(initial=0)) for _, values in parts)])
    tokens = sum(len(values) for _, values in parts)
    indices, values = np.zeros((tokens, slots), np.int64), np.zeros((tokens, slots), np.float32)
    begin = 0
    for part_indices, part_values in parts:
        rows, used = slice(begin, begin := begin + len(part_values)), part_values[:, :slots]
        values[rows, : used.shape[1]] = used
        indices[rows, : used.shape[1]] = np.where(used > 0, part_indices[:, :slots], 0)
    return indices, values
