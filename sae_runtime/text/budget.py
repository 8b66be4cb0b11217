"""What one run of a chat template may spend: steps and characters, counted and not timed."""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from contextvars import ContextVar
from typing import Any

STEPS, STEPS_OF_A_VALUE = 2_000_000, 500  # allowed, and allowed besides for each value of the conversation
CHARACTERS, CHARACTERS_OF_ONE = 8_000_000, 50  # made by the template in all, and besides for each character given
_CHARACTERS_A_STEP = 100  # of a text that is searched, compared or changed
_RARE = 20  # steps of a value whose type takes longer to look into
_PLAIN = frozenset((bool, float, type(None)))


class TooMuch(Exception):
    """A template wants more than it may spend. Templates cannot catch it."""


class Budget:
    """What is left for one run; `budget` holds the run's own in each thread.

    Args:
        values: number of values that the template is given.
        characters: number of their characters.
    """

    def __init__(self, values: int = 0, characters: int = 0) -> None:
        self.steps = STEPS + STEPS_OF_A_VALUE * values
        self.characters = CHARACTERS + CHARACTERS_OF_ONE * characters

    def spend(self, steps: int) -> None:
        """Count steps."""
        self.steps -= steps
        if self.steps < 0:
            raise TooMuch("it takes too many steps")

    def write(self, characters: int) -> None:
        """Count characters that are about to be made."""
        self.characters -= characters
        if self.characters < 0:
            raise TooMuch("it makes too much text")

    def size(self, value: Any) -> tuple[int, int]:
        """The numbers of values and of characters that printing or comparing a value visits; both cost steps.

        A list that holds another one twice counts it twice, because printing does so.
        """
        values = characters = 0
        left = [value]
        while left:
            one = left.pop()
            kind = type(one)
            values += 1
            if kind is str:
                characters += len(one)
            elif kind is list or kind is tuple:
                left.extend(one)
            elif kind is dict:
                left.extend(one)
                left.extend(one.values())
            elif kind is int:
                characters += one.bit_length() // 3
            elif kind not in _PLAIN:
                characters += len(one) if isinstance(one, str) else 0
                left.extend(_inside(one))
                values += _RARE
            if values + len(left) > self.steps:
                break
        self.spend(values + len(left) + characters // _CHARACTERS_A_STEP)
        return values, characters


def _inside(value: Any) -> Iterable[Any]:
    """What printing a value of a rarer type visits."""
    if isinstance(value, range | set | KeysView | ValuesView | ItemsView):
        return value
    held = getattr(type(value), "held", None)  # what a namespace holds
    return held(value).values() if held else ()


budget: ContextVar[Budget] = ContextVar("budget")


class Steps:
    """An iterable that counts its items, with the steps that the body of a loop takes for each."""

    def __init__(self, values: Iterable[Any], cost: int) -> None:
        self._values, self._cost = values, cost

    def __len__(self) -> int:
        if not isinstance(self._values, Sized):
            raise TypeError("it has no length")  # Jinja then counts the items itself
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        spend, cost = budget.get().spend, self._cost
        for value in self._values:
            spend(cost)
            yield value
