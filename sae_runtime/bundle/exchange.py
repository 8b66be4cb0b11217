"""Renames in one step, where the system has them: two paths change places, or a path takes a name that is free.

Linux has renameat2, macOS renamex_np. Some file systems know neither, and some sandboxes forbid them. Then the
functions give False, and nothing has changed.
"""

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_HERE = -100  # AT_FDCWD: paths start from the current folder
_LINUX_FREE, _LINUX_EXCHANGE = 1, 2
_MAC_FREE, _MAC_EXCHANGE = 4, 2


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, files or folders; False where the system cannot do it in one step.

    >>> _ = Path("a").write_text("1"), Path("b").write_text("2")
    >>> exchange(Path("a"), Path("b")), Path("a").read_text()
    (True, '2')

    Raises:
        FileNotFoundError: one of them does not exist.
        OSError: the system refuses.
    """
    return _renamed(one, other, _LINUX_EXCHANGE, _MAC_EXCHANGE)


def rename_to_free(path: Path, name: Path) -> bool:
    """Rename a path to a name that nothing has; False where the system cannot do it in one step.

    >>> _ = Path("c").write_text("1")
    >>> rename_to_free(Path("c"), Path("d")), Path("d").read_text()
    (True, '1')

    Raises:
        FileExistsError: something has the name.
        OSError: the system refuses.
    """
    return _renamed(path, name, _LINUX_FREE, _MAC_FREE)


def _renamed(path: Path, name: Path, linux: int, mac: int) -> bool:
    rename = _system_call()
    if rename is None:
        return False
    if rename(os.fsencode(path), os.fsencode(name), mac if sys.platform == "darwin" else linux) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), str(path), None, str(name))


@functools.cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    """The system's call, as a function of two paths and flags; None if it has none."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        return getattr(library, "renamex_np", None)
    renameat2 = getattr(library, "renameat2", None)  # musl has it from 1.2.6 on
    return renameat2 and (lambda path, name, flags: int(renameat2(_HERE, path, _HERE, name, flags)))
