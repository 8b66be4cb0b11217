"""Activations on disk: a file of an array, a folder of such files, or the folder of shards that harvest writes.

Harvest writes `activations.json` last, so a folder with this file is whole. Each safetensors shard of the folder holds
`activations` [n, d_in] (F32, F16 or BF16), `tokens` I32 [n], `documents` I32 [n] and `positions` I32 [n]. The file
`documents.jsonl` says where the documents stand.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.array_files import SUFFIXES, read_rows
from sae_runtime.activations.documents import Source
from sae_runtime.activations.listing import visible_files
from sae_runtime.activations.sources import read_sources
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.recorded_sizes import SAMPLE_ROWS
from sae_runtime.bundle.same_source import same_hook, same_model
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.core.arrays import as_float32, bfloat16_to_float32, first_nonfinite

INDEX = "activations.json"
PLAN = "harvest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Entry:
    """The entry of a shard in the index."""

    file: str
    rows: int


@dataclass(frozen=True)
class _SourcesEntry:
    """The entry of the file of the documents' sources."""

    file: str
    bytes: int


@dataclass(frozen=True)
class _Index:
    """The fields of `activations.json` that reading needs; harvest adds its settings."""

    format_version: int
    shards: tuple[_Entry, ...]
    d_in: int
    model: str | None
    hook: str | None
    context: int | None = None
    sources: _SourcesEntry | None = None
    transformer_lens_hook: str | None = None


@dataclass(frozen=True)
class Shard:
    """Rows of one mapped file: `x` [n, d_in] in its stored type (bfloat16 as uint16), and their origins [n]."""

    x: NDArray[Any]
    tokens: NDArray[np.int32] | None = None
    documents: NDArray[np.int32] | None = None
    positions: NDArray[np.int32] | None = None


class Activations:
    """Rows of activations in one or many mapped files, read as float32 on demand.

    `tokens`, `documents` and `positions` (int32 [n]) give the origin of each row, and are None if the files have none.
    `model`, `hook` and `transformer_lens_hook` name the source, or are None. `context` is the largest number of tokens
    that the model read at once, or None.

    >>> activations = open_activations(activations_path)
    >>> len(activations), activations.d_in, activations.slice(10, 12).shape
    (600, 24, (2, 24))
    """

    def __init__(
        self,
        path: Path,
        shards: Sequence[Shard],
        *,
        model: str | None = None,
        hook: str | None = None,
        transformer_lens_hook: str | None = None,
        context: int | None = None,
        sources: Path | None = None,
    ) -> None:
        self.path = path
        self.shards = list(shards)
        self.model = model
        self.hook = hook
        self.transformer_lens_hook = transformer_lens_hook
        self.context = context
        self._sources = sources
        self.d_in = int(shards[0].x.shape[1])
        self.starts = [0, *accumulate(len(shard.x) for shard in shards)]
        self.tokens = _joined([shard.tokens for shard in shards])
        self.documents = _joined([shard.documents for shard in shards])
        self.positions = _joined([shard.positions for shard in shards])

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows by number, in the order asked for: float32 [len(ids), d_in].

        Raises:
            IndexError: a row does not exist.
            ValueError: a row holds NaN or Inf.

        >>> open_activations(activations_path).rows(np.array([5, 0])).shape
        (2, 24)
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, asked for {ids.min()} to {ids.max()}")
        out = np.empty((len(ids), self.d_in), np.float32)
        order = np.argsort(ids, kind="stable")  # so that each file is read from its beginning to its end
        bounds = np.searchsorted(ids[order], self.starts)
        for number, shard in enumerate(self.shards):
            in_shard = order[bounds[number] : bounds[number + 1]]
            if len(in_shard):
                out[in_shard] = _float32(shard.x[ids[in_shard] - self.starts[number]])
        self._refuse_nonfinite(out, ids)
        return out

    def slice(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows begin to end: float32 [end - begin, d_in], or fewer at the end of the rows; errors as of `rows`.

        >>> open_activations(activations_path).slice(598, 700).shape
        (2, 24)
        """
        parts = [
            _float32(shard.x[max(begin - start, 0) : max(end - start, 0)])
            for shard, start in zip(self.shards, self.starts, strict=False)
            if start < end and begin < start + len(shard.x)
        ]
        out = np.concatenate(parts) if parts else np.empty((0, self.d_in), np.float32)
        self._refuse_nonfinite(out, np.arange(begin, begin + len(out)))
        return out

    def sources(self) -> Iterator[tuple[int, Source]]:
        """The number and the source of each document that has rows, in order; none if the files do not say it.

        Raises:
            ValueError: the file of the sources is damaged.

        >>> list(open_activations(activations_path).sources())
        []
        """
        return iter(()) if self._sources is None else read_sources(self._sources)

    def _refuse_nonfinite(self, x: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        row = first_nonfinite(x)
        if row is not None:
            raise ValueError(f"{self.path}: row {ids[row]} holds NaN or Inf; harvest it again or drop the row")


def open_activations(path: str | Path) -> Activations:
    """Open activations without reading their rows.

    Args:
        path: a folder that harvest wrote; a file of an array [n, d_in]: .npy, .npz, .safetensors, or .pt, .pth or .bin
            of torch.save; or a folder of such files, whose rows follow one another in the order of their numbers. Of
            several arrays in a file, it is the only one of two or more axes or has the name `activations`. Arrays
            [images, patches, d_in] give rows with the numbers of their image and patch as document and position.

    Raises:
        ValueError: the path is none of these, or it is empty, truncated or half written.
        FileNotFoundError: the path does not exist.
        ImportError: a file is of torch.save, and torch is not installed.

    >>> open_activations(activations_path).slice(0, 2).dtype
    dtype('float32')
    """
    path = repaired(Path(path))
    if path.is_dir():
        return _open_folder(path) if (path / INDEX).is_file() else _open_arrays(path)
    expected = f"expected a folder of harvest, or one of {', '.join(SUFFIXES)}, or a folder of these"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {expected}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: {expected}, got {path.suffix or 'a file without a suffix'}")
    return Activations(path, [Shard(**read_rows(path))])


def check_source(activations: Activations, manifest: Manifest, *, any_source: bool = False) -> None:
    """Refuse activations that an SAE was not fitted on.

    Raises:
        ValueError: they have another d_in, or come from another model or hook and `any_source` is not set.

    >>> check_source(open_activations(activations_path), sae.manifest)
    """
    try:
        manifest.check_d_in(activations.d_in)
    except ValueError as error:
        raise ValueError(f"{activations.path}: {error}") from error
    lens_a, lens_b = activations.transformer_lens_hook, manifest.transformer_lens_hook
    same: dict[str, Callable[[str, str], bool]] = {
        "model": same_model,
        "hook": functools.partial(same_hook, lens_a=lens_a, lens_b=lens_b),
    }
    for what, are_same in same.items():
        given, fitted = getattr(activations, what), getattr(manifest, what)
        if given is not None and fitted is not None and not any_source and not are_same(given, fitted):
            named = " (harvest --name says what a model is called)" if what == "model" else ""
            raise ValueError(
                f"{activations.path}: activations come from {what} {given!r}, this SAE was fitted on {fitted!r}; "
                f"harvest those{named}, or pass --any-source to go on"
            )


def sample_rows(rows: int, d_in: int) -> NDArray[np.int64]:
    """Numbers of the rows of a bundle's sample: at most 4 d_in and 4,096, evenly spread over all rows.

    >>> len(sample_rows(1_000_000, d_in=24))
    96
    """
    return np.linspace(0, rows - 1, min(rows, 4 * d_in, SAMPLE_ROWS)).astype(np.int64)


def _open_folder(path: Path) -> Activations:
    try:
        index: _Index = read_file(
            _Index, path / INDEX, "index", version=FORMAT_VERSION, field="format_version", more=True
        )
    except ValueError as error:
        raise ValueError(f"{path / INDEX}: {error}; harvest again") from error
    opened = []
    for entry in index.shards:
        file = path / entry.file
        if file.name != entry.file or not file.is_file():
            raise ValueError(f"{path} lacks the shard {entry.file}; run the same harvest again")
        shard = Shard(**read_rows(file))
        expected = (entry.rows, index.d_in)
        if shard.x.shape != expected:
            raise ValueError(f"{file} is {list(shard.x.shape)}, {INDEX} says {list(expected)}; harvest again")
        opened.append(shard)
    if not opened:
        raise ValueError(f"{path} holds no rows; harvest more text")
    sources = None if index.sources is None else path / index.sources.file
    if sources is not None and index.sources is not None:
        if sources.name != index.sources.file or not sources.is_file():
            raise ValueError(f"{path} lacks its file {index.sources.file}; harvest again")
        if sources.stat().st_size != index.sources.bytes:
            raise ValueError(f"{sources} has another size than {INDEX} says; harvest again")
    names = {"model": index.model, "hook": index.hook, "transformer_lens_hook": index.transformer_lens_hook}
    return Activations(path, opened, **names, context=index.context, sources=sources)


def _open_arrays(path: Path) -> Activations:
    """The rows of all files of arrays in a folder, in the order in which people count the files."""
    if (path / PLAN).is_file():
        raise ValueError(f"{path} holds no {INDEX}: not harvested to the end; run the same harvest again to finish it")
    files = [file for file in visible_files(path) if file.suffix.lower() in SUFFIXES]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        raise ValueError(
            f"{path} holds no {INDEX} and {' and '.join(kinds) or 'no'} arrays, expected those of one kind"
        )
    opened: list[Shard] = []
    images = 0
    for file in files:
        opened.append(Shard(**read_rows(file, first=images)))
        width, first = opened[-1].x.shape[1], opened[0].x.shape[1]
        if width != first:
            raise ValueError(f"{file} is {width} wide, {files[0].name} {first}; keep arrays of one hook in a folder")
        if (documents := opened[-1].documents) is not None:
            images = int(documents.max(initial=images - 1)) + 1
    return Activations(path, opened)


def _float32(x: NDArray[Any]) -> NDArray[np.float32]:
    return bfloat16_to_float32(x) if x.dtype == np.uint16 else as_float32(x)


def _joined(parts: Sequence[NDArray[np.int32] | None]) -> NDArray[np.int32] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if len(present) == len(parts) else None
