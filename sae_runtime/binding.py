"""Tensors of torch, CuPy or numpy, encoded where they lie: DLPack lends them to onnxruntime and back, uncopied."""

import importlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from sae_runtime.encoder import GPU, GRAPHS
from sae_runtime.manifest import Manifest
from sae_runtime.sessions import Sessions

T = TypeVar("T")
"""An array with DLPack: torch.Tensor, cupy.ndarray, numpy.ndarray."""

_DEVICES = {1: "cpu", 2: "cuda"}  # of DLPack's DLDeviceType


def encode_tensor(sessions: Sessions, manifest: Manifest, graph: str, x: T) -> tuple[T, T]:
    """Indices i64 and values f32 [n, width] of x [n, d_in], as tensors of the same kind on the same device.

    Args:
        sessions: of the bundle.
        manifest: of the bundle.
        graph: encode.onnx, or encode_gpu.onnx, whose rows are encoded again by encode.onnx where it is not certain.
        x: float32, contiguous, on the device of the sessions.

    Raises:
        ImportError: onnxruntime is older than 1.27, which has no DLPack.
        ValueError: x is not such a tensor.
        MemoryError: there is too little memory for so many tokens.
    """
    give = _giver(x)
    outputs = _run(sessions, graph, _borrowed(x, sessions.device, manifest.encoder.d_in))
    indices, values = (give(output) for output in outputs[:2])
    again = np.flatnonzero(~outputs[2].numpy()).tolist() if len(outputs) > 2 else []
    if again:
        part: Any = x
        rows = _borrowed(part[again], sessions.device, manifest.encoder.d_in)
        for whole, redone in zip((indices, values), _run(sessions, GRAPHS["float32"], rows), strict=True):
            whole[again] = give(redone)
    return indices, values


class FixedBatch(Generic[T]):
    """encode_gpu.onnx for batches of one size, in memory that stays: on CUDA a graph, captured once and replayed.

    Write activations into `x`, call `run`, read `indices`, `values` and `certain`; rows that are not certain are to be
    encoded by `SAE.encode_tensor`. Not for several threads at a time.

    Args:
        sessions: of the bundle.
        manifest: of the bundle.
        x: a tensor [n, d_in] as for `encode_tensor`; it is read and written where it lies, and must stay there.

    Raises:
        BundleError: the bundle was exported without the graph "gpu".
        ImportError: as for `encode_tensor`.
        ValueError: as for `encode_tensor`.
    """

    def __init__(self, sessions: Sessions, manifest: Manifest, x: T) -> None:
        give = _giver(x)
        borrowed = _borrowed(x, sessions.device, manifest.encoder.d_in)
        self._sessions, self._session = sessions, sessions.captured(GPU)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("x", borrowed)
        shape = (borrowed.shape()[0], manifest.width)
        made = [
            _new(sessions.device, size, dtype)
            for size, dtype in ((shape, np.int64), (shape, np.float32), (shape[:1], np.bool_))
        ]
        for output, value in zip(self._session.get_outputs(), made, strict=True):
            self._binding.bind_ortvalue_output(output.name, value)
        self._bound = (borrowed, *made)  # alive as long as the graph that knows their addresses
        self.x = x
        self.indices, self.values, self.certain = (give(value) for value in made)

    def run(self) -> None:
        """Encode what `x` holds."""
        self._sessions.run_bound(GPU, self._session, self._binding)


def _run(sessions: Sessions, graph: str, x: Any) -> list[Any]:
    """Outputs of a graph of x alone, as OrtValues on the device."""
    session = sessions.open(graph)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    for output in session.get_outputs():
        binding.bind_output(output.name, *sessions.device)
    sessions.run_bound(graph, session, binding)
    return list(binding.get_outputs())


def _borrowed(x: Any, device: tuple[str, int], d_in: int) -> Any:
    """An OrtValue over the memory of x."""
    import onnxruntime

    if not hasattr(onnxruntime.OrtValue, "from_dlpack"):
        raise ImportError(f"tensors need onnxruntime 1.27 or later, this is {onnxruntime.__version__}; upgrade it")
    if not hasattr(x, "__dlpack_device__"):
        raise ValueError(
            f"expected a tensor of torch, CuPy or numpy, got {type(x).__name__}; use SAE.encode for others"
        )
    kind, number = x.__dlpack_device__()
    if (_DEVICES.get(int(kind)), number) != device:
        where = f"{_DEVICES.get(int(kind), f'a device of DLPack type {int(kind)}')}:{number}"
        raise ValueError(
            f"the tensor is on {where}, the SAE on {device[0]}:{device[1]}; move it, or load with providers"
        )
    shape, dtype = tuple(x.shape), str(x.dtype).rpartition(".")[2]
    if dtype != "float32" or len(shape) != 2 or not shape[0] or shape[1] != d_in:
        raise ValueError(f"expected a tensor float32 [tokens, {d_in}] with tokens, got {dtype} {list(shape)}; cast it")
    if not (x.is_contiguous() if hasattr(x, "is_contiguous") else x.flags.c_contiguous):
        raise ValueError("the tensor's rows do not follow each other in memory; make it contiguous")
    try:
        return onnxruntime.OrtValue.from_dlpack(x)
    except Exception as error:  # torch, CuPy and onnxruntime each raise their own
        raise ValueError(f"the tensor cannot be lent to onnxruntime: {' '.join(str(error).split())}") from error


def _giver(x: object) -> Callable[[Any], Any]:
    """What makes an OrtValue a tensor like x, over the same memory."""
    library = importlib.import_module(type(x).__module__.partition(".")[0])
    if library is np:
        return lambda value: value.numpy()  # numpy would take DLPack's for read-only
    if not hasattr(library, "from_dlpack"):
        raise ValueError(
            f"expected a tensor of torch, CuPy or numpy, got {type(x).__name__}; use SAE.encode for others"
        )
    give: Callable[[Any], Any] = library.from_dlpack
    return give


def _new(device: tuple[str, int], shape: tuple[int, ...], dtype: Any) -> Any:
    """An OrtValue of that size on the device."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, *device)
