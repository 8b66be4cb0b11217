"""Write stored activations with edited features: an .npy of the same shape, or a .safetensors with the same ids."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.core.edits import Edit
from sae_runtime.core.progress import progress_bar
from sae_runtime.sae import SAE

_CHUNK = 4_096  # tokens read and steered at once


def any_rank(path: Path) -> tuple[Activations, tuple[int, ...]]:
    """Open activations as rows, and give the shape that they have on disk.

    Args:
        path: as for `open_activations`; an .npy may have the shape [..., d_in] and any real type.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: as `open_activations`, or an .npy does not hold real numbers of this shape.

    >>> rows, shape = any_rank(Path(activations_path))
    >>> (len(rows), rows.d_in) == shape
    True
    """
    if path.suffix != ".npy" or not path.is_file():
        rows = open_activations(path)
        return rows, (len(rows), rows.d_in)
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole .npy file ({error}); save it again") from error
    if x.ndim == 0 or x.shape[-1] == 0 or x.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {x.dtype} {list(x.shape)}, expected real numbers of shape [..., d_in]")
    return Activations(path, [Shard(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))]), x.shape


def steer_rows(
    sae: SAE,
    rows: Activations,
    edits: Sequence[Edit],
    out: Path,
    *,
    shape: tuple[int, ...],
    force: bool = False,
    progress: bool = False,
) -> None:
    """Write activations with the same edits on every token, float32; the file appears whole or not at all.

    Args:
        sae: the SAE that steers.
        rows: the activations [n, d_in].
        edits: at most one for each feature.
        out: an .npy, which is filled piece by piece, or a .safetensors, which is written at the end and keeps the
            tokens, documents and positions.
        shape: the shape to write, [..., d_in].
        force: replace what exists at `out`.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` exists and `force` is not set.
        ValueError: an edit or an activation is not what `SAE.steer` takes.

    >>> from sae_runtime import open_activations
    >>> rows = open_activations(activations_path)
    >>> steer_rows(sae, rows, [Edit.ablate(3)], Path("steered.npy"), shape=(len(rows), rows.d_in))
    >>> np.load("steered.npy").shape == (len(rows), rows.d_in)
    True
    """
    edits = sae.resolved(edits)  # once: the labels may change meanwhile
    with new_file(out, force=force) as partial, progress_bar(len(rows), "tokens", shown=progress) as bar:
        if out.suffix == ".npy":
            # Not mapped: a full disk would end the process by a signal instead of an error.
            with partial.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for y in _steered(sae, rows, edits, bar):
                    file.write(y.astype("<f4", copy=False).tobytes())
        else:
            flat = np.empty((len(rows), rows.d_in), np.float32)
            for begin, y in zip(range(0, len(rows), _CHUNK), _steered(sae, rows, edits, bar), strict=True):
                flat[begin : begin + len(y)] = y
            ids = {"tokens": rows.tokens, "documents": rows.documents, "positions": rows.positions}
            known = {name: array for name, array in ids.items() if array is not None}
            save_tensors(partial, {"activations": flat.reshape(shape), **known})


def _steered(sae: SAE, rows: Activations, edits: Sequence[Edit], bar: Any) -> Iterator[NDArray[np.float32]]:
    for begin in range(0, len(rows), _CHUNK):
        x = rows.slice(begin, begin + _CHUNK)
        try:
            y = sae.steer(x, edits)
        except BundleError:  # no row is at fault
            raise
        except ValueError as error:  # it counts rows from `begin`
            raise ValueError(f"{rows.path}, from row {begin} on: {error}") from error
        bar.update(len(y))
        yield y
