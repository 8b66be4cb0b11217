"""Tensors of checkpoints, read part by part when they are needed."""

import dataclasses
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
    """A tensor in a file, possibly transposed, scaled and shifted.

    Every use opens the file again, so that two tensors are never in memory together.

    Attributes:
        file: the file.
        name: the tensor's name in the file.
        shape: the shape after the transposition, if there is one.
        open: returns the tensor as the file has it, mapped or read: float16, float32, float64, integers, or bfloat16
            as uint16.
        turned: whether the matrix is the transpose of the one in the file.
        scale: float64 factors, broadcastable to `shape`.
        shift: float64 numbers, broadcastable to `shape`, which are added to the scaled ones.
        block: how many numbers are read at once.

    >>> matrix = np.array([[3.0, 4.0], [0.0, 2.0]])
    >>> stored = Stored(file=Path("sae.pt"), name="W_dec", shape=(2, 2), open=lambda: matrix)
    >>> stored.row_norms(), stored.T.scaled(2.0).row_norms()
    (array([5., 2.]), array([6. , 8.94427191]))
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    open: Callable[[], NDArray[Any]]
    turned: bool = False
    scale: Double | float = 1.0
    shift: Double | float = 0.0
    block: int = BLOCK

    @property
    def T(self) -> "Stored":
        """The transpose of a matrix; its scale and shift must not be set yet."""
        return dataclasses.replace(self, shape=self.shape[::-1], turned=not self.turned)

    def scaled(self, factor: Double | float) -> "Stored":
        """The tensor times a factor, broadcastable to its shape. Numbers are rounded once, when they are read."""
        with np.errstate(over="ignore", invalid="ignore"):  # `blocks` refuses numbers that are not finite
            return dataclasses.replace(self, scale=self.scale * factor, shift=self.shift * factor)

    def shifted(self, by: Double | float) -> "Stored":
        """The tensor plus numbers that are broadcastable to its shape."""
        return dataclasses.replace(self, shift=self.shift + by)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Slices of consecutive rows, each with its float32 numbers [rows, columns]; a vector is one row.

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
        """The same as `blocks` in float64.

        Raises:
            ValueError: a number in the file is NaN or infinite.
        """
        array = self.open()
        matrix = array.T if self.turned else array
        scale, shift = (np.broadcast_to(np.asarray(a, np.float64), self.shape) for a in (self.scale, self.shift))
        if matrix.ndim < 2:
            scale, shift = scale.reshape(1, -1), shift.reshape(1, -1)
        for rows, part in blocks(matrix, self.block):
            with np.errstate(invalid="ignore"):  # numpy warns of signalling NaNs, which the next check refuses
                numbers = (bfloat16_to_float32(part) if part.dtype == np.uint16 else part).astype(np.float64)
            if not np.isfinite(numbers).all():
                raise ValueError(f"{self.file}: {self.name} holds NaN or Inf; get a sound copy of the checkpoint")
            with np.errstate(over="ignore", invalid="ignore"):
                numbers *= scale[rows]
                numbers += shift[rows]
            yield rows, numbers

    def vector(self) -> Double:
        """All numbers of a vector or a scalar, float64 of its shape.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        ((_, whole),) = self.doubles()
        return whole.reshape(self.shape)

    def row_norms(self) -> Double:
        """Euclidean length of each row of a matrix, float64 [rows]."""
        squares = np.zeros(self.shape[0])
        for rows, part in self.doubles():
            squares[rows] = np.square(part).sum(axis=1)
        norms: Double = np.sqrt(squares)
        return norms

    def times(self, vector: Double) -> Double:
        """The product vector [rows] @ matrix, float64 [columns]."""
        out = np.zeros(self.shape[1])
        for rows, part in self.doubles():
            out += vector[rows] @ part
        return out


class Tensors:
    """The tensors of one file. Each method checks the shape of the tensor that it returns.

    >>> array = np.zeros((24, 150))
    >>> stored = Stored(file=Path("ae.pt"), name="W_enc", shape=array.shape, open=lambda: array)
    >>> tensors = Tensors(Path("ae.pt"), {"W_enc": stored})
    >>> tensors.matrix("W_enc", 24).shape
    (24, 150)
    >>> tensors.vector("b_enc", 150)
    Traceback (most recent call last):
    ValueError: ae.pt lacks the tensor b_enc; get a whole copy of the checkpoint
    """

    def __init__(self, file: Path, stored: dict[str, Stored]) -> None:
        self.file, self._stored = file, stored

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._stored)

    def first(self, *names: str) -> str:
        """The first of these names that the file has; the very first if it has none."""
        return next((name for name in names if name in self), names[0])

    def refuse_others(self, *names: str) -> None:
        """Raise ValueError if there are other tensors: they could change what the SAE computes."""
        if others := self.names() - set(names):
            raise ValueError(
                f"{self.file} holds {', '.join(sorted(others)[:4])}, which such an SAE does not have; expected only "
                f"{', '.join(sorted(names))}"
            )

    def refuse_scaling(self, name: str, length: int) -> None:
        """Raise ValueError if there is a vector of this name that is not all 1: no release says how to apply it."""
        if name in self and not np.allclose(self.vector(name, length), 1):
            raise ValueError(f"{self.file}: {name} is not 1, and no release says how it is to be applied")

    def matrix(self, name: str, rows: int | None = None, columns: int | None = None) -> Stored:
        """A matrix.

        Args:
            name: the tensor's name.
            rows: the expected number of rows; None for any.
            columns: the expected number of columns; None for any.

        Raises:
            ValueError: the tensor is missing or has another shape.
        """
        return self._get(name, rows, columns)

    def either(self, name: str, turned: str, rows: int | None = None, columns: int | None = None) -> Stored:
        """The matrix `name` [rows, columns], or the transpose of the matrix `turned` if the file has no `name`.

        Raises:
            ValueError: both are missing, or the shape is another.
        """
        return self.matrix(name, rows, columns) if name in self else self.matrix(turned, columns, rows).T

    def vector(self, name: str, length: int) -> Double:
        """A vector, float64 [length].

        Raises:
            ValueError: the tensor is missing or has another shape, or a number is NaN or infinite.
        """
        return self._get(name, length).vector()

    def scalar(self, name: str) -> float:
        """A single number.

        Raises:
            ValueError: the tensor is missing, holds several numbers, or its number is NaN or infinite.
        """
        shape = (1,) if self.rank(name) else ()
        return float(self._get(name, *shape).vector().item())

    def rank(self, name: str) -> int:
        """Number of dimensions of a tensor; 0 if the file has no tensor of this name."""
        return len(self._stored[name].shape) if name in self else 0

    def _get(self, name: str, *shape: int | None) -> Stored:
        if name not in self:
            raise ValueError(f"{self.file} lacks the tensor {name}; get a whole copy of the checkpoint")
        stored = self._stored[name]
        fits = len(stored.shape) == len(shape) and 0 not in stored.shape
        if not fits or any(n not in (None, m) for n, m in zip(shape, stored.shape, strict=True)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(
                f"{self.file}: {name} has shape {list(stored.shape)}, expected [{expected}]; get a whole copy"
            )
        return stored
