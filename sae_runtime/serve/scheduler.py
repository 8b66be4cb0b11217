"""One thread that takes lanes of work in turn, so that nobody waits for more than a piece of another's work."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from sae_runtime.serve.errors import TimedOut, out_of_time
from sae_runtime.serve.refusal import refusal


@dataclass(eq=False)
class Job:
    """A request that waits or runs.

    Attributes:
        work: what the lane made of the request.
        rows: how much it is.
        deadline: by `time.monotonic`.
        future: the answer.
        form: makes of what the lane found what the caller gets.
        done: rows that were answered.
        parts: of the answer so far.
    """

    work: Any
    rows: int
    deadline: float
    form: Callable[[Any], Any] | None = None
    future: "Future[Any]" = field(default_factory=Future)
    done: int = 0
    parts: list[Any] = field(default_factory=list)

    def is_gone(self, now: float) -> bool:
        """Whether nobody waits for it: its caller left, or its time is over, which its caller is told."""
        if now > self.deadline:
            self.fail(out_of_time())
        return self.future.done()

    def answer(self, result: Any) -> None:
        """Give the answer, unless the caller has left."""
        if self.form is not None:
            result = self.form(result)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Give an error likewise."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(refusal(error))


class Lane(Protocol):
    """Requests of one kind. Any thread puts them in; one thread calls the rest, `fail` when no other call will come."""

    def put(self, job: Job) -> None:
        """Let a request wait."""
        ...

    def ready(self) -> bool:
        """Whether there is something to do."""
        ...

    def tick(self) -> None:
        """Do one bounded piece of it. Errors belong to the requests, and are never raised."""
        ...

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        ...


class Scheduler:
    """Runs lanes in turn on a thread of its own.

    Args:
        lanes: that are there from the beginning.
        name: of the thread.

    >>> scheduler = Scheduler()
    >>> scheduler.close(drain=1.0)
    """

    def __init__(self, lanes: Sequence[Lane] = (), *, name: str = "sae-runtime serve") -> None:
        self._lanes, self._ends = list(lanes), False
        self._changed = threading.Condition(threading.Lock())
        self._asleep = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, lane: Lane) -> None:
        """Let a lane join."""
        with self._changed:
            self._lanes = [*self._lanes, lane]
            self._changed.notify()

    def wake(self) -> None:
        """Look at the lanes again: one of them has something to do."""
        if self._asleep:  # a runner that is awake looks at all lanes before it sleeps
            with self._changed:
                self._asleep = False  # so that the next ones do not wake it again
                self._changed.notify_all()  # `close` may wait here too

    def close(self, drain: float, error: Callable[[], Exception] | None = None) -> None:
        """End the thread when all lanes are empty, or after so many seconds; what is left fails with the error."""
        until = time.monotonic() + drain
        with self._changed:
            # The thread is asleep when no lane has anything to do, and none is in the middle of it.
            while not (self._asleep and self._is_idle()) and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.01))
            self._ends = True
            self._changed.notify_all()
        self._thread.join()
        for lane in self._lanes:
            lane.fail(error() if error is not None else TimedOut("the server ends"))

    def _run(self) -> None:
        while not self._ends:
            worked = False
            for lane in self._lanes:
                if self._ends:
                    return
                if lane.ready():
                    worked = True
                    lane.tick()
            if not worked:
                self._sleep()

    def _is_idle(self) -> bool:
        return not any(lane.ready() for lane in self._lanes)

    def _sleep(self) -> None:
        with self._changed:
            self._asleep = True  # from here on `wake` notifies; what came before is seen by `ready`
            try:
                if not self._ends and self._is_idle():
                    self._changed.wait()
            finally:
                self._asleep = False


class OneByOne:
    """A lane whose requests are never merged: each is one piece of work.

    Args:
        run: gives the answer to a request's work.
    """

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self._run, self._jobs = run, deque[Job]()

    def put(self, job: Job) -> None:
        """Let a request wait."""
        self._jobs.append(job)

    def ready(self) -> bool:
        """Whether a request waits."""
        return bool(self._jobs)

    def tick(self) -> None:
        """Answer one request."""
        job = self._jobs.popleft()
        if not job.is_gone(time.monotonic()):
            run_alone(job, self._run)

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        while self._jobs:
            self._jobs.popleft().fail(error)


def run_alone(job: Job, run: Callable[[Any], Any]) -> None:
    """Answer a request by itself; what fails in it is its own error."""
    try:
        job.answer(run(job.work))
    except Exception as error:  # the runner serves others, and lives on
        job.fail(error)
