"""The files of a folder, in the order in which people count them."""

import re
from pathlib import Path


def visible_files(folder: Path) -> list[Path]:
    """The entries of a folder whose names do not begin with a dot or an underscore; part-2 stands before part-10.

    >>> Path("parts").mkdir()
    >>> for name in ("part-10.txt", "part-2.txt", "_SUCCESS"):
    ...     _ = Path("parts", name).write_text("")
    >>> [file.name for file in visible_files(Path("parts"))]
    ['part-2.txt', 'part-10.txt']
    """
    return sorted((entry for entry in folder.iterdir() if entry.name[0] not in "._"), key=_counted)


def _counted(path: Path) -> tuple[list[str | int], str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)], path.name
