"""Names of SAEs as names of folders, which every system takes and every address can have."""

import re
from collections.abc import Sequence

_LONGEST = 60
# Names that Windows keeps for devices, whatever their case and suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(10))}


def folder_names(names: Sequence[str]) -> list[str]:
    """A name for each name, of letters, digits, `-`, `_` and `.`, all different also where case does not count.

    >>> folder_names(["mutual", "Mutual", "../x", "<img>", "", "CON"])
    ['mutual', 'Mutual-2', 'x', 'img', 'sae', 'sae-CON']
    """
    made: list[str] = []
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:_LONGEST].strip("-._") or "sae"
        safe = f"sae-{safe}" if safe.split(".")[0].lower() in _DEVICES else safe
        taken = {one.lower() for one in made}
        number, unique = 1, safe
        while unique.lower() in taken:
            number += 1
            unique = f"{safe}-{number}"
        made.append(unique)
    return made
