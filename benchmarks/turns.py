"""Turns of several runs, one after the other, so that what else the machine does meets all of them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def alternating(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each run gives in each round. Each round begins with another run, since the first is slower."""
    turns: dict[str, list[T]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(runs[name]())
    return turns
