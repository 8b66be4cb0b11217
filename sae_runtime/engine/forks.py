"""Objects with threads that are copied into a forked process, which does not have these threads."""

import ctypes
import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object that can begin anew in a forked process."""

    def after_fork(self) -> None:
        """Forget all that belongs to the parent's threads."""


_owners: "weakref.WeakSet[Forked]" = weakref.WeakSet()


def begin_anew(owner: Forked) -> None:
    """Call `owner.after_fork()` in every process that is forked while the owner lives.

    >>> begin_anew(sae._sessions)
    """
    _owners.add(owner)


def keep_forever(thing: object) -> None:
    """Never free this, not even when Python ends.

    To free an onnxruntime session is to wait for its threads. Where they do not exist, the process hangs or crashes.

    >>> keep_forever([])
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
