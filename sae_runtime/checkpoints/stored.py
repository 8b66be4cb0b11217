"""Tensors of foreign files, read part by part when they are needed."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.tensors import BLOCK, blocks
from sae_runtime.core.arrays import bfloat16_to_float32

Double = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file, possibly transposed and scaled.

    Every reading opens the file anew, so that two tensors are never in memory together.

    Attributes:
        file: the file.
        name: of the tensor in the file.
        shape: after the transposition, if any.
        open: gives the tensor as the file has it, mapped or read: float16, float32, float64, integers, or bfloat16 as
            uint16.
        turned: whether a matrix is read as its transpose.
        scale: float64 factors, broadcastable to `shape`.
        block: numbers that are read at once.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    open: Callable[[], NDArray[Any]]
    turned: bool = False
    scale: Double | float = 1.0
    block: int = BLOCK

    @property
    def T(self) -> "Stored":
        """The transpose of a matrix; its scale must not be set yet."""
        return dataclasses.replace(self, shape=self.shape[::-1], turned=not self.turned)

    def scaled(self, factor: Double | float) -> "Stored":
        """The tensor times a factor, broadcastable to its shape; rounded once, when it is read."""
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are refused when they are read
            return dataclasses.replace(self, scale=self.scale * factor)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Consecutive rows with their float32 numbers; a vector is one row.

        Raises:
            ValueError: a number is NaN, infinite or too large for float32.
        """
        for rows, part in self.doubles():
            with np.errstate(over="ignore"):
                rounded = part.astype(np.float32)
            if not np.isfinite(rounded).all():
                raise ValueError(f"{self.file}: {self.name} is beyond float32 when folded; it cannot be served")
            yield rows, rounded

    def doubles(self) -> Iterator[tuple[slice, Double]]:
        """As `blocks`, in float64."""
        array = self.open()
        matrix = array.T if self.turned else array
        scale = np.broadcast_to(np.asarray(self.scale, np.float64), self.shape)
        scale = scale.reshape(1, -1) if matrix.ndim < 2 else scale
        for rows, part in blocks(matrix, self.block):
            with np.errstate(invalid="ignore"):  # numpy warns of a signalling NaN, which is refused below
                numbers = (bfloat16_to_float32(part) if part.dtype == np.uint16 else part).astype(np.float64)
            if not np.isfinite(numbers).all():
                raise ValueError(f"{self.file}: {self.name} holds NaN or Inf; get a sound copy of the checkpoint")
            with np.errstate(over="ignore", invalid="ignore"):
                numbers *= scale[rows]
            yield rows, numbers

    def vector(self) -> Double:
        """All numbers of a vector or a scalar, float64 of its shape.

        Raises:
            ValueError: one is NaN or infinite.
        """
        ((_, whole),) = self.doubles()
        return whole.reshape(self.shape)

    def row_norms(self) -> Double:
        """Euclidean lengths of a matrix's rows, float64."""
        squares = np.zeros(self.shape[0])
        for rows, part in self.doubles():
            squares[rows] = np.square(part).sum(axis=1)
        norms: Double = np.sqrt(squares)
        return norms

    def times(self, vector: Double) -> Double:
        """vector [rows] @ the matrix, float64."""
        out = np.zeros(self.shape[1])
        for rows, part in self.doubles():
            out += vector[rows] @ part
        return out


class Tensors:
    """The tensors of one file, given by name after a check of their shape."""

    def __init__(self, file: Path, stored: dict[str, Stored]) -> None:
        self.file, self._stored = file, stored

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._stored)

    def rank(self, name: str) -> int:
        """Number of dimensions of the tensor."""
        return len(self._get(name).shape)

    def refuse_others(self, *names: str) -> None:
        """Raise ValueError if there are other tensors: they could change what the SAE computes."""
        if others := self.names() - set(names):
            raise ValueError(
                f"{self.file} holds {', '.join(sorted(others)[:4])}, which such an SAE does not have; expected only "
                f"{', '.join(sorted(names))}"
            )

    def matrix(self, name: str, rows: int | None = None, columns: int | None = None) -> Stored:
        """A matrix.

        Args:
            name: of the tensor.
            rows: the expected number of rows; None for any.
            columns: the expected number of columns; None for any.

        Raises:
            ValueError: the tensor is missing or has another shape.
        """
        stored = self._get(name)
        shape = stored.shape
        if len(shape) != 2 or 0 in shape or rows not in (None, shape[0]) or columns not in (None, shape[1]):
            expected = ", ".join("any" if n is None else str(n) for n in (rows, columns))
            raise ValueError(f"{self.file}: {name} has shape {list(shape)}, expected [{expected}]; get a whole copy")
        return stored

    def vector(self, name: str, length: int) -> Double:
        """A vector, float64 [length]; ValueError as of `matrix`, or if a number is not finite."""
        stored = self._get(name)
        if stored.shape != (length,):
            raise ValueError(
                f"{self.file}: {name} has shape {list(stored.shape)}, expected [{length}]; get a whole copy"
            )
        return stored.vector()

    def scalar(self, name: str) -> float:
        """A single number; ValueError as of `vector`."""
        stored = self._get(name)
        if math.prod(stored.shape) != 1 or len(stored.shape) > 1:
            raise ValueError(f"{self.file}: {name} has shape {list(stored.shape)}, expected one number")
        return float(stored.vector().reshape(()))

    def _get(self, name: str) -> Stored:
        if name not in self._stored:
            raise ValueError(f"{self.file} lacks the tensor {name}; get a whole copy of the checkpoint")
        return self._stored[name]
