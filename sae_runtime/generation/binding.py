"""Inputs and outputs of a graph that stay bound from one run to the next; binding all again takes a millisecond."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.engine.sessions import run_binding


class Binding:
    """An onnxruntime IOBinding, and what is bound.

    Args:
        session: an onnxruntime InferenceSession.
    """

    def __init__(self, session: Any) -> None:
        self._session, self._io = session, session.io_binding()
        self._fed: dict[str, NDArray[Any]] = {}
        self._held: dict[str, Any] = {}
        self._outputs: dict[str, int] = {}  # their places in the answer of a run

    def feed(self, name: str, array: NDArray[Any]) -> None:
        """Give an input an array, which must not be written before the run."""
        if self._fed.get(name) is not array:
            self.feed_value(name, value_of(array))
            self._fed[name] = array

    def feed_value(self, name: str, value: Any) -> None:
        """Give an input an OrtValue. An array itself is taken for required inputs alone."""
        self._io.bind_ortvalue_input(name, value)
        self._held[name] = value  # and so its memory, which onnxruntime does not hold

    def ask(self, name: str) -> None:
        """Let the next run make an output anew."""
        self._io.bind_output(name, "cpu")
        self._outputs.setdefault(name, len(self._outputs))

    def in_place(self, past: str, present: str, array: NDArray[Any]) -> None:
        """Let an input and an output be the same memory, in all runs from now on."""
        place, shape = array.__array_interface__["data"][0], array.shape
        self._io.bind_input(past, "cpu", 0, array.dtype, shape, place)
        self._io.bind_output(present, "cpu", 0, array.dtype, shape, place)
        self._outputs.setdefault(present, len(self._outputs))
        self._fed[past] = array

    def run(self, what: object) -> None:
        """Run the session; errors are those of `engine.sessions.run_session`, and `what` is the graph in them."""
        run_binding(self._session, self._io, what)

    def arrays(self, *names: str) -> list[NDArray[Any]]:
        """Outputs of the last run as arrays."""
        values = self._io.get_outputs_as_ortvaluevector()
        return [np.asarray(values[self._outputs[name]].numpy()) for name in names]

    def values(self) -> dict[str, Any]:
        """All outputs of the last run as OrtValues, by name."""
        return dict(zip(self._outputs, self._io.get_outputs(), strict=True))


def value_of(array: NDArray[Any]) -> Any:
    """An OrtValue of the same memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"))  # keeps a number a number
