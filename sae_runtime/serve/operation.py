"""One thing that a loaded model does, with the tensors that it takes and gives, and what protocols say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.serve.scheduler import Lane
from sae_runtime.serve.tensors import Arrays, Tensor


@dataclass(frozen=True)
class Operation:
    """One thing that a loaded model does.

    Attributes:
        name: such as "encode".
        inputs: tensors that it takes.
        outputs: tensors that it gives.
        accept: makes of checked tensors and parameters the work of its lane and its number of rows, on the caller's
            thread; raises `Invalid` or ValueError.
        lane: where the work waits.
        ranks: other numbers of dimensions that inputs may have.
        tensors: makes tensors of what the lane found, where that is something else.
        is_long: whether a request of it may be one long piece of work, which runs beside the others.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    accept: Callable[[Arrays, Mapping[str, Any]], tuple[Any, int]]
    lane: Lane
    ranks: Mapping[str, int] = field(default_factory=dict)
    tensors: Callable[[Any], Arrays] | None = None
    is_long: bool = False


@dataclass(frozen=True)
class Listed:
    """A line of the index.

    Attributes:
        name: such as "my-sae.encode".
        version: of the model.
        state: "READY", or "UNAVAILABLE" when the server ends.
        reason: why it is not ready; else "".
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class Metadata:
    """What a protocol says of one operation of a model.

    Attributes:
        name: such as "my-sae.encode".
        versions: of the model.
        inputs, outputs: tensors.
    """

    name: str
    versions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
