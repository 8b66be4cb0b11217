"""Tells an event loop of answers that other threads give: once for all that come at about the same time."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary


class Bell:
    """Wakes those on one event loop who wait for futures of threads.

    To wake a loop from another thread costs much more than an answer to one row, so one ring does for many answers.

    Args:
        loop: where they wait.

    >>> async def waits():
    ...     future = Future()
    ...     asyncio.get_running_loop().run_in_executor(None, future.set_result, 7)
    ...     await bell_of(asyncio.get_running_loop()).when_done(future)
    ...     return future.result()
    >>> asyncio.run(waits())
    7
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._rung = loop, False
        self._ended = deque[asyncio.Future[None]]()

    def when_done(self, future: "Future[Any]") -> "asyncio.Future[None]":
        """Is done when the future is."""
        told: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda _: self._ring(told))
        return told

    def _ring(self, told: "asyncio.Future[None]") -> None:
        self._ended.append(told)
        if not self._rung and not self._loop.is_closed():
            self._rung = True
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._rung = False  # before it looks, so that who comes from now on rings again
        while self._ended:
            told = self._ended.popleft()
            if not told.done():
                told.set_result(None)


_BELLS: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()


def bell_of(loop: asyncio.AbstractEventLoop) -> Bell:
    """The one bell of a loop that runs."""
    found = _BELLS.get(loop)
    if found is None:
        found = _BELLS[loop] = Bell(loop)
    return found
