"""Which rows of vLLM's packed batch belong to which request, and where in its request each row stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """The rows of one request in a pass.

    Attributes:
        request: the engine's id of the request.
        start: number of the first row in the batch.
        count: number of rows.
        position: of the first row's token in the request, from 0.
    """

    request: str
    start: int
    count: int
    position: int

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each row's token, [count]."""
        return np.arange(self.position, self.position + self.count)


def packed(order: Sequence[str], counts: Mapping[str, int], positions: Mapping[str, int]) -> list[Rows]:
    """The rows of each request in a pass.

    Args:
        order: ids of the requests, as they stand in the batch.
        counts: number of scheduled tokens of each request.
        positions: of the first of them.

    Raises:
        RuntimeError: the batch holds other requests than the scheduler sent, so that rows would be taken for another's.

    >>> packed(["b", "a"], {"a": 1, "b": 3}, {"a": 7, "b": 0})[1]
    Rows(request='a', start=3, count=1, position=7)
    """
    if sorted(order) != sorted(counts):
        raise RuntimeError(
            f"vLLM's batch holds {len(order)} requests and its scheduler sent {len(counts)} others; this vLLM packs "
            "rows in another way than sae-runtime knows"
        )
    found, start = [], 0
    for request in order:
        found.append(Rows(request, start, counts[request], positions[request]))
        start += counts[request]
    return found


def positions_of(scheduled: Any) -> dict[str, int]:
    """The position of the first scheduled token of each request, out of vLLM's SchedulerOutput."""
    cached = scheduled.scheduled_cached_reqs
    known = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return known | {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}


class Order:
    """In which order a model runner packs requests; the two runners of vLLM keep it in different places.

    Args:
        runner: the worker's model runner.
        second: whether it is the second one, which packs a batch in its method `prepare_inputs` and keeps it nowhere.
    """

    def __init__(self, runner: Any, *, second: bool) -> None:
        self._runner, self._second, self._batch = runner, second, None
        if second:
            prepare = runner.prepare_inputs

            def prepared(*args: Any, **named: Any) -> Any:
                self._batch = prepare(*args, **named)
                return self._batch

            runner.prepare_inputs = prepared

    def begin(self) -> None:
        """Forget the last pass."""
        self._batch = None

    def requests(self) -> list[str]:
        """The ids of the requests of this pass, as they stand in its batch."""
        if not self._second:
            batch = self._runner.input_batch
            return list(batch.req_ids[: batch.num_reqs])
        if self._batch is None:
            raise RuntimeError("vLLM's model ran without a packed batch; sae-runtime does not know this vLLM")
        return list(self._batch.req_ids[: self._batch.num_reqs])

    def ids(self, rows: int) -> Any:
        """The token id of each row, a tensor [rows] on the model's device."""
        ids = self._batch.input_ids if self._batch is not None else self._runner.input_ids.gpu
        return ids[:rows]
