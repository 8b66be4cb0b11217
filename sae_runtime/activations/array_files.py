"""The rows of a file of arrays: .npy, .npz, .safetensors, or what torch.save wrote. Nothing is unpickled."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.npz_files import npz_members
from sae_runtime.bundle.regular import open_regular
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.bundle.torch_files import as_array, check_torch_file, is_tensor, load_torch_file

_TORCH = (".pt", ".pth", ".bin")
SUFFIXES = (".npy", ".npz", ".safetensors", *_TORCH)

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file, mapped where the file allows it. Only bfloat16 is uint16.

    An array that has no name, as in .npy files, has the name "activations".

    Raises:
        ImportError: the file is of torch.save, and torch is not installed.
        ValueError: the file is damaged, unpacks to far more than its size, or holds anything but arrays of numbers.

    >>> np.savez("x.npz", x=np.zeros((2, 3)))
    >>> read_arrays(Path("x.npz"))["x"].shape
    (2, 3)
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return {name: map_tensor(path, spec) for name, spec in read_header(path).items()}
    if suffix in _TORCH:
        return _of_torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy warns of headers that Python 2 wrote
            arrays = (
                {name: member.mapped() for name, member in npz_members(path).items()}
                if suffix == ".npz"
                else {"activations": _of_npy(path)}
            )
    except Exception as error:  # a damaged header makes numpy raise errors of many classes
        if isinstance(error, MemoryError | PermissionError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a whole {suffix} file ({reason}); save it again") from error
    return {name: a.astype(np.int32) if a.dtype == np.uint16 else a for name, a in arrays.items()}


def read_rows(path: Path, *, first: int = 0) -> Arrays:
    """The rows of a file's array, `x` [n, d_in], and their `tokens`, `documents` and `positions`, int32 [n], if known.

    It is the array "activations", or the only one of two or more axes. If it has more than two, the first axis is the
    documents, from number `first`, and the axes between the first and the last are the positions.

    Raises:
        ImportError: the file is of torch.save, and torch is not installed.
        ValueError: as `read_arrays`, or the file does not hold one array of floats, or ids do not fit its rows.

    >>> np.save("x.npy", np.zeros((2, 5, 3)))
    >>> rows = read_rows(Path("x.npy"))
    >>> rows["x"].shape, rows["documents"].tolist(), rows["positions"].tolist()
    ((10, 3), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    """
    arrays = read_arrays(path)
    names = ["activations"] if "activations" in arrays else [n for n, a in arrays.items() if a.ndim > 1]
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} arrays of two or more axes, expected one, or one 'activations'")
    x = arrays[names[0]]
    shape = x.shape[:-1]
    if x.ndim < 2 or x.shape[-1] < 1 or not (x.dtype.kind == "f" or x.dtype == np.uint16):
        expected = "floating-point numbers of shape [n, d_in] or [..., n, d_in]"
        raise ValueError(f"{path} holds {x.dtype} {list(x.shape)}, expected {expected}")
    known = [name for name in ("tokens", "documents", "positions") if name in arrays]
    ids: Arrays = {name: _ids(path, name, arrays[name], shape) for name in known}
    if len(shape) > 1:
        per_document = math.prod(shape[1:])
        if "documents" not in ids:
            ids["documents"] = np.arange(first, first + shape[0], dtype=np.int32).repeat(per_document)
        if "positions" not in ids:
            ids["positions"] = np.tile(np.arange(per_document, dtype=np.int32), shape[0])
    return {"x": x.reshape(math.prod(shape), x.shape[-1]), **ids}


def _ids(path: Path, name: str, ids: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int32]:
    if ids.shape != shape or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {name} must be whole numbers {list(shape)}, got {ids.dtype} {list(ids.shape)}; harvest again"
        )
    if ids.dtype != np.int32 and not -(1 << 31) <= ids.min(initial=0) <= ids.max(initial=0) < 1 << 31:
        raise ValueError(f"{path}: {name} holds numbers beyond int32; number them from 0")
    return ids.reshape(-1).astype(np.int32, copy=False)


def _of_torch(path: Path) -> Arrays:
    check_torch_file(path)
    saved = load_torch_file(path)
    named = saved if isinstance(saved, dict) else {"activations": saved}
    arrays = {str(name): as_array(path, str(name), value) for name, value in named.items() if is_tensor(value)}
    if not arrays:
        raise ValueError(
            f"{path} holds a {type(saved).__name__}, expected a tensor or a dict with tensors; save one of these"
        )
    return arrays


def _of_npy(path: Path) -> NDArray[Any]:
    open_regular(path).close()  # a pipe would wait
    array: Any = np.load(path, "r", allow_pickle=False)
    if (rest := path.stat().st_size - array.offset - array.nbytes) > 0:  # numpy would not look at it
        raise ValueError(f"{rest} bytes follow its array, as where np.save was called twice for one file")
    return array  # type: ignore[no-any-return]
