"""Sparse features of many tokens as one .npz that `scipy.sparse.load_npz` opens: a CSR matrix [tokens, d_sae].

Written without scipy, and bit by bit: what grows with the matches waits in nameless files beside the output, since an
.npz holds one array after the other and each begins with its length.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.feature_rows import FeatureRows


def write(path: Path, parts: Iterable[FeatureRows], description: Mapping[str, Any]) -> None:
    """Write features to an .npz file.

    Beside scipy's own arrays (data f32, indices i32, indptr i64, shape, format) it holds doc, pos and token (int32
    [tokens]; no token where unknown) and the description as JSON in `sae_runtime`, which scipy leaves alone.

    Args:
        path: the file.
        parts: in order.
        description: what the features are, with the `encoder` that made them.
    """
    lengths: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    origin: dict[str, list[NDArray[Any]]] = {"doc": [], "pos": [], "token": []}
    with (
        tempfile.TemporaryFile(dir=path.parent) as indices,
        tempfile.TemporaryFile(dir=path.parent) as values,
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file,
    ):
        for part in parts:
            part.indices.astype("<i4", copy=False).tofile(indices)
            part.values.astype("<f4", copy=False).tofile(values)
            lengths.append(np.diff(part.indptr))
            for name, ids in (("doc", part.documents), ("pos", part.positions), ("token", part.tokens)):
                if ids is not None:
                    origin[name].append(ids.astype(np.int32))
        indptr = np.concatenate(lengths).cumsum()
        _spooled(file, "indices", np.dtype("<i4"), int(indptr[-1]), indices)
        _spooled(file, "data", np.dtype("<f4"), int(indptr[-1]), values)
        arrays: dict[str, Any] = {
            "indptr": indptr,
            "format": np.array(b"csr"),
            "shape": np.array([len(indptr) - 1, description["encoder"]["d_sae"]]),
            "_is_array": np.array(True),
            "sae_runtime": np.array(json.dumps(description)),
        }
        arrays |= {name: np.concatenate(ids) for name, ids in origin.items() if ids}
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _spooled(file: zipfile.ZipFile, name: str, dtype: "np.dtype[Any]", length: int, spool: IO[bytes]) -> None:
    """Copy an array that waits in a file into the .npz."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    spool.seek(0)
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        shutil.copyfileobj(spool, member, 1 << 20)
