"""Activations on disk: a plain .npy or .safetensors of shape [n, d_in], or the folder of shards that harvest writes.

Harvest writes `activations.json` last, so a folder that has it is whole. Each safetensors shard of the folder holds
`activations` [n, d_in] (F32, F16 or BF16), `tokens` I32 [n], `documents` I32 [n] and `positions` I32 [n].
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.bundle.typed_json import read_json
from sae_runtime.core.arrays import as_float32, bfloat16_to_float32, first_nonfinite

INDEX = "activations.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Entry:
    """A shard as the index lists it."""

    file: str
    rows: int


@dataclass(frozen=True)
class _Index:
    """The fields of `activations.json` that reading needs; harvest adds what it was told to do."""

    format_version: int
    shards: tuple[_Entry, ...]
    d_in: int
    model: str | None
    hook: str | None


@dataclass(frozen=True)
class Shard:
    """A run of rows of one mapped file: `x` [n, d_in] in its stored type (bfloat16 as uint16)."""

    x: NDArray[Any]
    tokens: NDArray[np.int32] | None = None
    documents: NDArray[np.int32] | None = None
    positions: NDArray[np.int32] | None = None


class Activations:
    """Rows of activations over one or many mapped files, read as float32 on demand.

    `documents`, `positions` and `tokens` (int32 [n]) say where each row came from, and are None for plain files.
    `model` and `hook` name the source, where known.
    """

    def __init__(
        self, path: Path, shards: Sequence[Shard], *, model: str | None = None, hook: str | None = None
    ) -> None:
        self.path = path
        self.shards = list(shards)
        self.model = model
        self.hook = hook
        self.d_in = int(shards[0].x.shape[1])
        self.starts = [0]
        for shard in shards:
            self.starts.append(self.starts[-1] + len(shard.x))
        self.tokens = _joined([shard.tokens for shard in shards])
        self.documents = _joined([shard.documents for shard in shards])
        self.positions = _joined([shard.positions for shard in shards])

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows by number, in the order asked for: float32 [len(ids), d_in].

        Raises:
            IndexError: there is no such row.
            ValueError: a row holds NaN or Inf.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, asked for {ids.min()} to {ids.max()}")
        out = np.empty((len(ids), self.d_in), np.float32)
        order = np.argsort(ids, kind="stable")  # read every file forwards
        bounds = np.searchsorted(ids[order], self.starts)
        for number, shard in enumerate(self.shards):
            in_shard = order[bounds[number] : bounds[number + 1]]
            if len(in_shard):
                out[in_shard] = _float32(shard.x[ids[in_shard] - self.starts[number]])
        self._refuse_nonfinite(out, ids)
        return out

    def slice(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows begin to end, float32; raises ValueError as `rows` does."""
        end = min(end, len(self))
        parts = []
        row = begin
        while row < end:
            number = bisect.bisect_right(self.starts, row) - 1
            start, stop = self.starts[number], min(end, self.starts[number + 1])
            parts.append(_float32(self.shards[number].x[row - start : stop - start]))
            row = stop
        out = np.concatenate(parts) if parts else np.empty((0, self.d_in), np.float32)
        self._refuse_nonfinite(out, np.arange(begin, end))
        return out

    def _refuse_nonfinite(self, x: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        row = first_nonfinite(x)
        if row is not None:
            raise ValueError(f"{self.path}: row {ids[row]} holds NaN or Inf; harvest it again or drop the row")


def open_activations(path: str | Path) -> Activations:
    """Open activations without reading them.

    Args:
        path: a folder that harvest wrote, an .npy file, or a .safetensors file whose only 2-D tensor (or the one
            named `activations`) is [n, d_in].

    Raises:
        ValueError: the path is none of these, or is empty, truncated or half written.
        FileNotFoundError: the path does not exist.

    >>> open_activations(activations_path).slice(0, 2).dtype
    dtype('float32')
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder of harvest, an .npy or a .safetensors file")
    if path.suffix == ".npy":
        try:
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a whole .npy file ({error}); save it again") from error
        return Activations(path, [Shard(_checked(path, x))])
    if path.suffix == ".safetensors":
        return Activations(path, [_open_shard(path)])
    suffix = path.suffix or "a file without a suffix"
    raise ValueError(f"{path}: expected a folder of harvest, an .npy or a .safetensors file, got {suffix}")


def check_source(activations: Activations, manifest: Manifest, *, any_source: bool = False) -> None:
    """Refuse activations that an SAE was not fitted for.

    Raises:
        ValueError: they have another width or, unless `any_source` is set, come from another model or hook.
    """
    try:
        manifest.check_d_in(activations.d_in)
    except ValueError as error:
        raise ValueError(f"{activations.path}: {error}") from error
    for what, theirs, ours in (
        ("model", activations.model, manifest.model),
        ("hook", activations.hook, manifest.hook),
    ):
        if theirs is not None and ours is not None and theirs != ours and not any_source:
            raise ValueError(
                f"{activations.path}: activations come from {what} {theirs!r}, this SAE was fitted on {ours!r}; "
                "harvest those, or pass --any-source to go on"
            )


def sample_rows(rows: int, d_in: int) -> NDArray[np.int64]:
    """Which of so many activations make a bundle's sample: up to 4 d_in and 4,096 of them, evenly spread."""
    return np.linspace(0, rows - 1, min(rows, 4 * d_in, 4096)).astype(np.int64)


def _open_folder(path: Path) -> Activations:
    if not (path / INDEX).is_file():
        raise ValueError(f"{path} holds no {INDEX}: not harvested to the end; run the same harvest again to finish it")
    try:
        index: _Index = read_json(_Index, (path / INDEX).read_bytes(), "index", more=True)
    except ValueError as error:
        raise ValueError(f"{path / INDEX}: {error}; harvest again") from error
    if index.format_version != FORMAT_VERSION:
        raise ValueError(
            f"{path / INDEX} has format version {index.format_version}, this sae-runtime reads {FORMAT_VERSION}; "
            "install the release that wrote it"
        )
    opened = []
    for entry in index.shards:
        file = path / entry.file
        if file.name != entry.file or not file.is_file():
            raise ValueError(f"{path} lacks the shard {entry.file}; run the same harvest again")
        shard = _open_shard(file)
        expected = (entry.rows, index.d_in)
        if shard.x.shape != expected:
            raise ValueError(f"{file} is {list(shard.x.shape)}, {INDEX} says {list(expected)}; harvest again")
        opened.append(shard)
    if not opened:
        raise ValueError(f"{path} holds no rows; harvest more text")
    return Activations(path, opened, model=index.model, hook=index.hook)


def _open_shard(path: Path) -> Shard:
    specs = read_header(path)
    matrices = ["activations"] if "activations" in specs else [n for n, s in specs.items() if len(s.shape) == 2]
    if len(matrices) != 1:
        raise ValueError(f"{path} holds {len(matrices)} 2-D tensors, expected one (or one named 'activations')")
    spec = specs[matrices[0]]
    x = _checked(path, map_tensor(path, spec), bfloat16=spec.dtype == "BF16")
    ids: dict[str, NDArray[np.int32]] = {}
    for name in ("tokens", "documents", "positions"):
        if name in specs:
            ids[name] = map_tensor(path, specs[name])
            if specs[name].shape != (len(x),) or specs[name].dtype != "I32":
                raise ValueError(f"{path}: {name} must be I32 [{len(x)}], got {specs[name].dtype}; harvest again")
    return Shard(x, **ids)


def _checked(path: Path, x: NDArray[Any], *, bfloat16: bool = False) -> NDArray[Any]:
    if x.ndim != 2 or x.shape[1] < 1 or not (bfloat16 or x.dtype.kind == "f"):
        raise ValueError(f"{path} holds {x.dtype} {list(x.shape)}, expected floating-point numbers of shape [n, d_in]")
    return x


def _float32(x: NDArray[Any]) -> NDArray[np.float32]:
    return bfloat16_to_float32(x) if x.dtype == np.uint16 else as_float32(x)


def _joined(parts: Sequence[NDArray[np.int32] | None]) -> NDArray[np.int32] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if len(present) == len(parts) else None
