"""What an edit is by its numbers: its kind and its strength."""

from sae_runtime.core.edits import Edit

_FREE = Edit(0)  # its ends clip nothing


def kind_of(edit: Edit) -> str | None:
    """The kind of an edit, by its numbers: "none" if it changes nothing, None if it is of no single kind.

    >>> kind_of(Edit.set(3, 8.0)), kind_of(Edit(3, 1.0, 0.0, high=4.0)), kind_of(Edit(3, 2.0, 1.0)), kind_of(Edit(3))
    ('set', 'cap', None, 'none')
    """
    if edit.high < _FREE.high or edit.low > _FREE.low:
        return "cap" if (edit.factor, edit.shift, edit.low) == (1.0, 0.0, _FREE.low) else None
    if edit.factor == 0:
        return "set" if edit.shift else "ablate"
    if edit.factor == 1:
        return "add" if edit.shift else "none"
    return None if edit.shift else "scale"


def strength_of(edit: Edit) -> float:
    """The activation that an edit gives a feature with f = 0, without its sign.

    >>> strength_of(Edit.set(3, -8.0)), strength_of(Edit.scale(3, 4.0)), strength_of(Edit.cap(3, 2.0))
    (8.0, 0.0, 0.0)
    """
    return abs(min(max(edit.shift, edit.low), edit.high))
