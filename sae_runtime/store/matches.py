"""The external transpose: matches that come row by row are read back feature by feature, in bounded memory.

A match is a row of a temporary file. Rows come in order, and every step keeps their order within a feature, so ties
between equal activations go to the earlier row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MATCH = np.dtype([("feature", "<i4"), ("token", "<i4"), ("row", "<i8"), ("value", "<f4")])
LIMIT = 1 << 21  # matches that are sorted in memory at once, which takes some 200 MB
MOST_FILES = 256  # that are written at the same time
MOST_FEATURES = 1 << 14  # of a bucket, whose statistics are held in memory
_DIGITS = 1 << 16  # values of half of a float32

Matches = NDArray[Any]


@dataclass(frozen=True)
class Bucket:
    """A file of the matches of the features from `low` to before `high`, in the order of their rows."""

    path: Path
    low: int
    high: int

    @property
    def size(self) -> int:
        """Number of matches."""
        return self.path.stat().st_size // MATCH.itemsize

    def chunks(self, limit: int) -> Iterator[Matches]:
        """The matches in order, at most `limit` at once."""
        for begin in range(0, self.size, limit):
            yield np.fromfile(self.path, MATCH, limit, offset=begin * MATCH.itemsize)


class Buckets:
    """Files that matches are dealt out to by ranges of features; the matches come in the order of their rows."""

    def __init__(self, folder: Path, bounds: NDArray[np.int64]) -> None:
        """Make a file in a folder for the features of each range bounds[i] to before bounds[i + 1]."""
        self._bounds = bounds
        self._paths = [folder / f"{low}-{high}" for low, high in zip(bounds, bounds[1:], strict=False)]
        self._files = [path.open("wb") for path in self._paths]

    def __enter__(self) -> "Buckets":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def put(self, matches: Matches) -> None:
        """Deal out matches."""
        _deal(matches, np.searchsorted(self._bounds, matches["feature"], side="right") - 1, self._files)

    def buckets(self) -> list[Bucket]:
        """All buckets, in the order of the features."""
        return [
            Bucket(path, int(low), int(high))
            for path, low, high in zip(self._paths, self._bounds, self._bounds[1:], strict=False)
        ]


def even_bounds(d_sae: int, matches: int, limit: int) -> NDArray[np.int64]:
    """Bounds of equal ranges of features, so many that each has some three quarters of `limit` matches.

    >>> even_bounds(8, 40, 20).tolist()
    [0, 2, 5, 8]
    """
    count = max(-(-4 * matches // (3 * limit)), -(-d_sae // MOST_FEATURES))
    return np.linspace(0, d_sae, min(count, MOST_FILES, d_sae) + 1).astype(np.int64)


def small_enough(bucket: Bucket, limit: int) -> Iterator[Bucket]:
    """The bucket, or buckets of a part of its features each, that hold at most `limit` matches or one feature.

    The files of the parts are removed when the next one is asked for.
    """
    if bucket.high - bucket.low == 1 or (bucket.size <= limit and bucket.high - bucket.low <= MOST_FEATURES):
        yield bucket
        return
    counts = np.zeros(bucket.high - bucket.low, np.int64)
    for matches in bucket.chunks(limit):
        counts += np.bincount(matches["feature"] - bucket.low, minlength=len(counts))
    bounds = bucket.low + _groups(counts, limit, MOST_FEATURES)
    with Buckets(_inside(bucket), bounds) as parts:
        for matches in bucket.chunks(limit):
            parts.put(matches)
    for part in parts.buckets():
        yield from small_enough(part, limit)
        part.path.unlink()


def falling(bucket: Bucket, limit: int) -> Iterator[Matches]:
    """The matches of a bucket by feature, then by falling value, then by row, at most `limit` at once.

    Args:
        bucket: one feature's, or with at most `limit` matches.
        limit: of what is sorted at once.
    """
    if bucket.size <= limit:
        for matches in bucket.chunks(limit):
            yield matches[sorted_by(_falling_bits(matches), matches["feature"] - bucket.low)]
        return
    halves = (lambda m: _falling_bits(m) >> np.uint32(16), lambda m: _falling_bits(m) & np.uint32(_DIGITS - 1))
    yield from _by_digits(bucket, limit, halves)


def sorted_by(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """The order that sorts by the last of these keys, then by the one before it, and so on; equal ones keep theirs.

    It is np.lexsort of whole numbers from 0 on, by radix sorts of 16 bits each, which take a fifth of the time.

    >>> sorted_by(np.array([3, 1, 2]), np.array([0, 1, 0])).tolist()
    [2, 0, 1]
    """
    order = np.arange(len(keys[0]))
    for key in keys:
        for shift in range(0, int(key.max(initial=0)).bit_length(), 16):
            digit = (key >> key.dtype.type(shift)).astype(np.uint16)
            order = order[np.argsort(digit[order], kind="stable")]
    return order


def _by_digits(bucket: Bucket, limit: int, digits: tuple[Callable[[Matches], NDArray[Any]], ...]) -> Iterator[Matches]:
    """The matches of one feature in falling order, dealt out by the digits of their values as long as they are many."""
    if bucket.size <= limit:
        yield from falling(bucket, limit)
    elif not digits:  # all have one value: they are in order
        yield from bucket.chunks(limit)
    else:
        digit, *rest = digits
        counts = np.zeros(_DIGITS, np.int64)
        for matches in bucket.chunks(limit):
            counts += np.bincount(digit(matches), minlength=_DIGITS)
        bounds = _groups(counts, limit, _DIGITS)
        folder = _inside(bucket)
        paths = [folder / f"value-{low}" for low in bounds[:-1]]
        for begin in range(0, len(paths), MOST_FILES):
            some = bounds[begin : begin + MOST_FILES + 1]
            files = [path.open("wb") for path in paths[begin : begin + MOST_FILES]]
            for matches in bucket.chunks(limit):
                place = digit(matches)
                inside = (some[0] <= place) & (place < some[-1])
                _deal(matches[inside], np.searchsorted(some, place[inside], side="right") - 1, files)
            for file in files:
                file.close()
        for path, low, high in zip(paths, bounds, bounds[1:], strict=False):
            part = Bucket(path, bucket.low, bucket.high)
            yield from _by_digits(part, limit, tuple(rest) if high - low == 1 else digits)
            path.unlink()


def _deal(matches: Matches, place: NDArray[np.int64], files: list[Any]) -> None:
    """Append each match to the file of its place."""
    kind = np.uint8 if len(files) <= 1 << 8 else np.uint16 if len(files) <= 1 << 16 else np.int64
    order = np.argsort(place.astype(kind), kind="stable")  # a radix sort
    ends = np.cumsum(np.bincount(place, minlength=len(files)))
    matches = matches[order]
    for file, begin, end in zip(files, [0, *ends[:-1]], ends, strict=True):
        if end > begin:
            matches[begin:end].tofile(file)


def _falling_bits(matches: Matches) -> NDArray[np.uint32]:
    """Whole numbers that fall as the values, which are positive, rise."""
    return ~np.ascontiguousarray(matches["value"]).view(np.uint32)


def _groups(counts: NDArray[np.int64], limit: int, most: int) -> NDArray[np.int64]:
    """Bounds of runs of at most `limit` in sum and `most` in number; what alone is more than the limit is alone."""
    bounds, total = [0], 0
    for number, count in enumerate(counts.tolist()):
        if number > bounds[-1] and (total + count > limit or number - bounds[-1] >= most):
            bounds.append(number)
            total = 0
        total += count
    return np.array([*bounds, len(counts)], np.int64)


def _inside(bucket: Bucket) -> Path:
    """A folder for the parts of a bucket."""
    folder = bucket.path.with_name(f"{bucket.path.name}.parts")
    folder.mkdir(exist_ok=True)
    return folder
