"""Encoding of torch, CuPy and numpy tensors on their device, in their own memory (DLPack)."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from sae_runtime.bundle.graphs import ENCODE
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.engine.sessions import Sessions, sentence

T = TypeVar("T")
"""An array that supports DLPack: torch.Tensor, cupy.ndarray or numpy.ndarray."""

_DEVICES = {1: "cpu", 2: "cuda"}  # keys: DLPack's DLDeviceType


def encode_tensor(sessions: Sessions, manifest: Manifest, graph: str, x: T) -> tuple[T, T]:
    """Indices i64 and values f32 [n, slots] of x [n, d_in], as tensors of the same library on the same device.

    Args:
        sessions: of the bundle.
        manifest: of the bundle.
        graph: encode.onnx or encode_gpu.onnx. If encode_gpu.onnx is not certain of a row, encode.onnx encodes it again.
        x: float32, contiguous, on the device of the sessions.

    Raises:
        ImportError: onnxruntime is older than 1.27, which has no DLPack.
        ValueError: x is not such a tensor.
        MemoryError: there is too little memory for this number of tokens.
    """
    as_tensor = _converter(x)
    outputs = _run(sessions, graph, _borrowed(x, sessions.device, manifest.architecture.d_in))
    indices, values = (as_tensor(output) for output in outputs[:2])
    again = np.flatnonzero(~outputs[2].numpy()).tolist() if len(outputs) > 2 else []
    if again:
        part: Any = x
        rows = _borrowed(part[again], sessions.device, manifest.architecture.d_in)
        for whole, redone in zip((indices, values), _run(sessions, ENCODE.file, rows), strict=True):
            whole[again] = as_tensor(redone)
    return indices, values


def _run(sessions: Sessions, graph: str, x: Any) -> list[Any]:
    """The outputs of a graph for the input x, as OrtValues on the device."""
    session = sessions.open(graph)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    for output in session.get_outputs():
        binding.bind_output(output.name, *sessions.device)
    sessions.run_bound(graph, session, binding)
    return list(binding.get_outputs())


def _borrowed(x: Any, device: tuple[str, int], d_in: int) -> Any:
    """An OrtValue over the memory of x, which is checked first."""
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
        raise ValueError("the tensor's rows are not contiguous in memory; make it contiguous")
    try:
        return onnxruntime.OrtValue.from_dlpack(x)
    except Exception as error:  # torch, CuPy and onnxruntime have different exception classes
        raise ValueError(f"the tensor cannot be lent to onnxruntime: {sentence(error)}") from error


def _converter(x: object) -> Callable[[Any], Any]:
    """The function that makes a tensor of x's library from an OrtValue, over the same memory."""
    library = importlib.import_module(type(x).__module__.partition(".")[0])
    if library is np:
        return lambda value: value.numpy()  # numpy's from_dlpack would make the array read-only
    if not hasattr(library, "from_dlpack"):
        raise ValueError(
            f"expected a tensor of torch, CuPy or numpy, got {type(x).__name__}; use SAE.encode for others"
        )
    convert: Callable[[Any], Any] = library.from_dlpack
    return convert
