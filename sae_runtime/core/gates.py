"""Gates: which tokens of a text an edit reaches."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

WordOfPlaces = Literal["all", "prompt", "last_prompt", "generated", "answer"]
Word = Literal[WordOfPlaces, "text"]
WORDS_OF_PLACES: tuple[str, ...] = get_args(WordOfPlaces)
WORDS: tuple[str, ...] = get_args(Word)


@dataclass(frozen=True)
class Positions:
    """Tokens by their number in the request, from 0, special tokens counted and padding not."""

    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"positions({', '.join(map(str, self.numbers))})"


@dataclass(frozen=True)
class Spans:
    """Tokens that overlap parts of the text, each from a character to the one before its end."""

    ends: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"spans({', '.join(map(str, self.ends))})"


Gate = Word | Positions | Spans
"""Which tokens an edit reaches.

- "all": every token.
- "text": every token but the special ones.
- "prompt": the tokens that were given. Where nothing is generated, these are all.
- "last_prompt": the last token of the prompt.
- "generated": the tokens that the model chose. The first of them comes from the last token of the prompt, so no edit of
  generated tokens moves it.
- "answer": the last token of the prompt and the generated ones, thus every token that a new one comes from.
- `positions(0, 3)`, or a set of numbers; `spans((0, 8), (12, 20))`.
"""


def positions(*numbers: int) -> Positions:
    """The gate of these tokens, counted from 0 with special tokens.

    Raises:
        ValueError: a number is not whole, or negative.

    >>> str(positions(0, 3))
    'positions(0, 3)'
    """
    if not all(_is_whole(number) for number in numbers):
        raise ValueError(f"a gate of positions takes whole numbers from 0 on, got {', '.join(map(repr, numbers))}")
    return Positions(tuple(int(number) for number in numbers))


def spans(*ends: Sequence[int]) -> Spans:
    """The gate of the tokens that overlap parts of the text.

    Args:
        ends: of each part the number of its first character, and the number after its last one.

    Raises:
        ValueError: a part is not a pair of whole numbers that ascend from 0 on.

    >>> str(spans((0, 8), (12, 20)))
    'spans((0, 8), (12, 20))'
    """
    for pair in ends:
        is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not (is_pair and all(_is_whole(number) for number in pair) and pair[0] < pair[1]):
            raise ValueError(f"a gate of spans takes pairs of characters (first, end) with first < end, got {pair!r}")
    return Spans(tuple((int(first), int(end)) for first, end in ends))


def as_gate(gate: Any) -> Gate:
    """A gate, if this is one; a set or list of whole numbers becomes `positions`.

    Raises:
        ValueError: it is no gate.

    >>> as_gate({3, 0})
    Positions(numbers=(0, 3))
    """
    if isinstance(gate, Positions):
        return positions(*gate.numbers)
    if isinstance(gate, Spans):
        return spans(*gate.ends)
    if isinstance(gate, str) and gate in WORDS:
        return gate  # type: ignore[return-value]  # the words of Word
    if isinstance(gate, Collection) and not isinstance(gate, str | bytes) and all(map(_is_whole, gate)):
        return positions(*sorted(gate))
    raise ValueError(f"a gate is {', '.join(map(repr, WORDS))}, positions(...) or spans(...), got {gate!r}")


def reached(
    gate: Gate,
    places: NDArray[np.int64],
    *,
    prompt: int,
    special: NDArray[np.bool_],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which tokens a gate reaches, bool [t].

    Args:
        gate: as `as_gate` gives it.
        places: the number of each token in its request, from 0 without padding, [t].
        prompt: number of tokens of the prompt; where nothing is generated, of the text.
        special: whether each token is a special one, [t].
        offsets: characters of each token in the text, [t, 2]; (0, 0) where it has none, as a generated one.

    >>> tokens = {"special": np.array([True, False, False]), "offsets": np.array([[0, 0], [0, 4], [5, 8]])}
    >>> reached(spans((4, 6)), np.arange(3), prompt=3, **tokens).tolist()
    [False, False, True]
    """
    inside = np.zeros(len(places), np.bool_)
    match gate:
        case "text":
            inside = ~special
        case str():
            inside = by_word(gate, places, prompt)
        case Positions(numbers):
            inside = np.isin(places, np.array(numbers, np.int64))
        case Spans(ends):
            for first, end in ends:
                inside |= (offsets[:, 0] < end) & (offsets[:, 1] > first) & (places < prompt)
    return inside


def by_word(word: WordOfPlaces, places: Any, prompt: Any) -> Any:
    """Which tokens a word means by their places alone; numpy's arrays and torch's tensors alike.

    Args:
        word: the gate.
        places: the number of each token in its request, from 0 without padding.
        prompt: number of tokens of the prompt, broadcastable to the places.

    >>> by_word("answer", np.arange(4), prompt=3).tolist()
    [False, False, True, True]
    """
    match word:
        case "prompt":
            return places < prompt
        case "last_prompt":
            return places == prompt - 1
        case "generated":
            return places >= prompt
        case "answer":
            return places >= prompt - 1
    return places >= 0


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(0 <= number < 2**63)
