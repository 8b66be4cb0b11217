"""docs/concepts.md: the table of what an edit does says what `Edit` does."""

import re

import numpy as np
from documents import table

from sae_runtime import Edit

EDITS = {"add": Edit.add, "set": Edit.set, "scale": Edit.scale, "ablate": Edit.ablate, "cap": Edit.cap}
F = np.array([0.0, 2.0, 10.0])


def test_the_table_of_edits_has_what_edits_give() -> None:
    seen = set()
    for name, *said in table("concepts.md", "edit"):
        kind, number = re.fullmatch(r"`(\w+)` ?([\d.]*)", name).groups()  # type: ignore[union-attr]
        edit = EDITS[kind](12, float(number)) if number else EDITS[kind](12)  # type: ignore[call-arg, arg-type]
        given = np.clip(edit.factor * F + edit.shift, edit.low, edit.high)
        assert [float(value) for value in said] == given.tolist()
        seen.add(kind)
    assert seen == set(EDITS)
