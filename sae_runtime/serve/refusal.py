"""What a caller is told of an error that is not the plane's own, and what stays in the server's log."""

import logging
import re
from pathlib import Path

from sae_runtime.bundle.folder import BundleError
from sae_runtime.core.printable import printable
from sae_runtime.engine.sessions import RunError
from sae_runtime.serve.errors import Full, Invalid, Refused, TooLarge

_LOG = logging.getLogger("sae_runtime.serve")
_FOLDERS: dict[str, str] = {}  # of this server, and the name by which callers know what is in each
_ASK = "tell whoever runs this server, whose log says why"


def known_as(folder: Path, name: str) -> None:
    """Let callers read a name where an error has a path in this folder."""
    for one in {folder.absolute(), folder.resolve()}:
        _FOLDERS[str(one)] = name


def refusal(error: BaseException) -> Refused:
    """What a caller is told where an answer failed. What concerns the server alone goes to its log.

    >>> type(refusal(ValueError("x holds NaN"))).__name__, str(refusal(ValueError("x holds NaN")))
    ('Invalid', 'x holds NaN')
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError) and not isinstance(error, BundleError | RunError):
        return Invalid(_without_paths(str(error)))
    text = printable(" ".join(str(error).split()))
    _LOG.error(
        "a request could not be answered: %s: %s",
        type(error).__name__,
        text,
        # The class and the text of other errors do not say where they come from.
        exc_info=None if isinstance(error, ValueError | OSError | MemoryError) else error,
    )
    if isinstance(error, MemoryError):
        return TooLarge("there is too little memory for this request; ask for less at once")
    if isinstance(error, RunError):
        return Invalid(f"the model cannot be run on this request; ask for something else, or {_ASK}")
    # What failed is on the server's side, such as a bundle that a program changed.
    return Full(10.0, f"this request could not be answered, {_ASK}")


def _without_paths(text: str) -> str:
    """The text of an error on one line, with names in the place of this server's folders."""
    for folder in sorted(_FOLDERS, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", _FOLDERS[folder], text)
    return " ".join(text.split())
