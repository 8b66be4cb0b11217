"""The tokens of a context on which the feature is active, with their places in its text."""

from dataclasses import dataclass

from sae_runtime.store.records import Context


@dataclass(frozen=True)
class ActiveToken:
    """A token: its number in the context, its first character in the text and the one after its last, its value."""

    number: int
    begin: int
    end: int
    value: float


def active_tokens(context: Context) -> list[ActiveToken]:
    """The active tokens of a context that has a text, in order; the peak is always among them."""
    assert context.offsets is not None
    numbers = context.values.nonzero()[0].tolist()
    if context.values[context.peak] == 0:
        numbers = sorted([*numbers, context.peak])
    offsets, values = context.offsets[numbers].tolist(), context.values[numbers].tolist()
    return [
        ActiveToken(number, begin, end, value)
        for number, (begin, end), value in zip(numbers, offsets, values, strict=True)
    ]
