"""The parts of an extraction under Ray Data: actors make them, here or on the machines of a cluster.

The items are numbers of parts, and no features pass through Ray: an actor writes the files of a part itself, as the
local loop does. So machines need the same paths to the model, the input and the output. A part that is made twice, as
after the death of an actor, has the same bytes.

Ray listens on every address of a machine; by default it lets only those in who have the token in the home folder.
"""

import os
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from sae_runtime.bundle.extras import require
from sae_runtime.extraction.tasks import Engine, Task

_STORE = 128 << 20  # bytes of Ray's object store on this machine; only numbers of parts go through it
_BLOCKS = 4_096  # the most that Ray Data tracks one by one
_AGAIN = 3  # times that a part is tried again when its actor died


def ray_engine(*, address: str | None = None, workers: int | None = None, cpus: int = 1) -> Engine:
    """An engine for `extract` that runs actors of Ray Data.

    A run that ends, by an error or by Ctrl-C too, leaves no process behind on this machine.

    Args:
        address: of a cluster, such as "ray://head:10001" or "auto"; None: Ray is started here and ended after the run.
        workers: number of actors; None: as many as the CPUs allow.
        cpus: CPUs of an actor. Open the model or the SAE with as many threads.

    Raises:
        ImportError: Ray is not installed (the extra `ray`).
        ValueError: a number is not 1 or more.

    >>> ray_engine(workers=0)  # doctest: +SKIP
    Traceback (most recent call last):
    ValueError: Ray runs 1 or more actors, got 0 workers; give another number
    """
    require("ray")
    if workers is not None and workers < 1:
        raise ValueError(f"Ray runs 1 or more actors, got {workers} workers; give another number")
    if cpus < 1:
        raise ValueError(f"an actor has 1 or more CPUs, got {cpus}; give another number")

    def engine(task: Task, numbers: Sequence[int]) -> Iterator[int]:
        if numbers:
            yield from _run(task, numbers, address, workers, cpus)

    return engine


def _run(task: Task, numbers: Sequence[int], address: str | None, workers: int | None, cpus: int) -> Iterator[int]:
    import ray.data

    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _start(address, workers, cpus)
        yield from _made(task, numbers, _actors(address, workers, cpus), cpus)
    except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"Ray could not make a part ({reason}); the parts that are there stay, run again") from error
    finally:
        if is_ours:
            ray.shutdown()


def _start(address: str | None, workers: int | None, cpus: int) -> None:
    """Start Ray here, with the CPUs that the actors ask for, or join a cluster."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cores = max(_cores(), cpus * (workers or 1))
        quiet |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        if address and (place := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", address)):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address or "local", **quiet)
    except Exception as error:  # Ray raises plain ones
        reason = " ".join(str(error).split())[:200]
        if address is None:
            raise ValueError(
                f"Ray does not start here ({reason}); try --engine local, or Ray's own ray start"
            ) from error
        raise ValueError(
            f"there is no Ray cluster at {address} ({reason}); start one with ray start --head, or give no address"
        ) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _actors(address: str | None, workers: int | None, cpus: int) -> int:
    """The number of actors. Ray would wait for ever for CPUs that a cluster does not have."""
    import ray

    has = int(ray.cluster_resources().get("CPU", 0))
    if has < cpus * (workers or 1):
        raise ValueError(
            f"{workers or 1} actors of {cpus} CPUs need {cpus * (workers or 1)}, and the Ray cluster at {address} has "
            f"{has}; ask for fewer"
        )
    return workers or has // cpus


def _made(task: Task, numbers: Sequence[int], actors: int, cpus: int) -> Iterator[int]:
    """The numbers of parts as Ray Data's actors have made them."""
    import ray.data
    from ray import cloudpickle

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"part": number} for number in numbers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how the number of tries is given
        made = ray.data.from_items(items, override_num_blocks=min(len(items), _BLOCKS)).map_batches(
            _Maker,
            fn_constructor_args=(cloudpickle.dumps(task), os.getcwd(), cpus),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            num_cpus=cpus,
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            max_task_retries=_AGAIN,
        )
    for batch in made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        for number, error in zip(batch["part"].to_pylist(), batch["error"].to_pylist(), strict=True):
            if error is not None:
                raise cloudpickle.loads(error)
            yield number


class _Maker:
    """An actor: it opens what the task needs once, and makes parts. Errors are data, so that Ray wraps none of them."""

    def __init__(self, task: bytes, folder: str, cpus: int) -> None:
        self._pickled, self._folder = task, folder
        self._task: Task | None = None
        os.environ["RAYON_NUM_THREADS"] = str(cpus)  # of tokenizers

    def __call__(self, batch: Any) -> Any:
        """Make the parts of a batch, an Arrow table, and give it back with an error for each, or none."""
        import pyarrow

        errors = [self._error(number) for number in batch["part"].to_pylist()]
        return batch.append_column("error", pyarrow.array(errors, pyarrow.binary()))

    def _error(self, number: int) -> bytes | None:
        from ray import cloudpickle

        try:
            if self._task is None:
                os.chdir(self._folder)  # paths are those of the command
                self._task = cloudpickle.loads(self._pickled)
            self._task(number)
        except Exception as error:
            pickled: bytes = cloudpickle.dumps(error)
            return pickled
        return None
