"""Tensors of Triton's Python backend as numpy arrays, both ways, also where its program is older than numpy 2.

The program that runs a Python model (the stub) is built for a numpy. One that is older than numpy 2 reads a wrong size
of numpy's numbers, without an error: zeros arrive, and outputs are cut. Numbers cross such a stub by DLPack. Texts
cannot, and end the stub, so a model that takes or gives texts is refused there.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PROBE = np.arange(1, 5, dtype=np.float32)


class Wire:
    """Reads and makes tensors of Triton.

    Args:
        utils: the module triton_python_backend_utils, which Triton gives.
    """

    def __init__(self, utils: Any) -> None:
        self._tensor = utils.Tensor
        # A stub before numpy 2 is sound with numpy 1, and making a tensor by DLPack never ends there.
        self.is_sound = np.lib.NumpyVersion(np.__version__) < "2.0.0" or np.array_equal(
            utils.Tensor.from_dlpack("probe", _PROBE).as_numpy(), _PROBE
        )
        if not self.is_sound:
            _silence_capsules()

    def refuse_texts(self, config: Mapping[str, Any]) -> None:
        """Raise ValueError if a model takes or gives texts and the stub cannot.

        >>> class Utils:
        ...     class Tensor:
        ...         from_dlpack = classmethod(lambda kind, name, array: kind())
        ...         as_numpy = lambda tensor: _PROBE
        >>> Wire(Utils).refuse_texts({"input": [{"data_type": "TYPE_STRING"}]})
        """
        tensors = (*config.get("input", ()), *config.get("output", ()))
        if not self.is_sound and any(tensor.get("data_type") == "TYPE_STRING" for tensor in tensors):
            raise ValueError(
                f"the Python backend of this Triton cannot read texts with numpy {np.__version__}, which is newer than "
                "it; install numpy<2 into the Python that it runs, or take a later Triton"
            )

    def read(self, tensor: Any) -> NDArray[Any]:
        """The array of a tensor of a request."""
        array: NDArray[Any] = tensor.as_numpy() if self.is_sound else np.from_dlpack(tensor)
        return array

    def make(self, name: str, array: NDArray[Any]) -> Any:
        """The tensor of an output.

        Raises:
            ValueError: the array is empty, and the stub can give none that is.
        """
        array = np.ascontiguousarray(array)
        if self.is_sound:
            return self._tensor(name, array)
        if array.size == 0:
            raise ValueError(
                f"the output {name} is empty, and the Python backend of this Triton gives none that is with numpy "
                f"{np.__version__}; ask for a row at least"
            )
        return self._tensor.from_dlpack(name, array)


def _silence_capsules() -> None:
    """Print no error for each output: such a stub renames what numpy's destructor then looks for in vain."""
    usual = sys.unraisablehook

    def hook(raised: Any) -> None:
        if "PyCapsule_GetPointer called with incorrect name" not in str(raised.exc_value):
            usual(raised)

    sys.unraisablehook = hook
