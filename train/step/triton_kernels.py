"""The sparse products of a training step on CUDA, by Triton kernels of our own.

`cpu_kernels` has the same functions for the CPU. With m matches, each kernel fetches m rows of d_in numbers and does
two operations with each number. The fetches take all of the time, so tensor cores could not help. Each docstring counts
the bytes. Sums are float32 for rows of any type.

Equal arguments give equal bits, and the sum of a token or feature does not depend on the other tokens or features. So
no kernel adds atomically, and block sizes depend on d_in alone. Block sizes are not tuned, since another size would be
another order of summation. A program fetches a row in parts of at most 256 columns, 1 KiB of float32. With eight parts
at a time, each of the program's 128 threads has four loads of 16 bytes under way. Wider parts would waste more if d_in
is not a power of two (768 = 3 * 256).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_runtime.train.step.matches import Matches

ROWS = 8  # matches that a program fetches at a time
COLUMNS = 256  # columns of the widest part of a row
CHUNK = 128  # most matches that one program sums; with fewer there are more partial sums to write and read


def reconstruct(matches: Matches, rows: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The sum over each token's matches of value times row[feature]: [d_sae, d_in] to [n, d_in], float32.

    Moves m * (d_in * s + 12) bytes in and 4 * n * d_in out, where a number in `rows` has s bytes.
    """
    counts = matches.token_begin.diff()
    return _sums(rows, matches.feature, matches.values, matches.token_begin[:-1], counts, chunk)


def dots(rows: Tensor, columns: Tensor, matches: Matches) -> Tensor:
    """rows[token] . columns[feature] for every match: [n, d_in] and [d_sae, d_in] to [m], float32.

    Moves (n * s + m * t) * d_in + 16 * m bytes in and 4 * m out, where numbers in `rows` and `columns` have s and t
    bytes. The matches of a token are neighbours, so its row is read from memory once.
    """
    rows, columns = rows.contiguous(), columns.contiguous()
    m, d_in = len(matches.positions), rows.shape[1]
    products = rows.new_empty(m, dtype=torch.float32)
    if m:
        with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
            dots_kernel[(triton.cdiv(m, ROWS),)](
                products, rows, columns, matches.token, matches.feature, m, d_in, ROWS, columns_of(d_in)
            )
    return products


def sums_by_feature(rows: Tensor, weights: Tensor, matches: Matches, *, chunk: int = CHUNK) -> Tensor:
    """The sum over each feature's matches of weight times row[token]: [n, d_in] and [m] to [d_sae, d_in], float32.

    Moves m * (d_in * s + 52) bytes in and out, including the sort of the matches, and 4 * d_sae * d_in out, where a
    number in `rows` has s bytes.
    """
    token, weights = matches.token[matches.by_feature], weights[matches.by_feature]
    return _sums(rows, token, weights, matches.feature_begin, matches.counts, chunk)


def _sums(rows: Tensor, index: Tensor, weight: Tensor, begin: Tensor, counts: Tensor, chunk: int) -> Tensor:
    """For each bag b, the sum of weight[s] * rows[index[s]] for s from begin[b] to begin[b] + counts[b]: [bags, d_in].

    A bag is the matches of a token or of a feature. Some features match every token, so a bag can be long. A bag is cut
    into chunks. The first launch sums every chunk after a bag's first one, each to a row of `parts`. The second launch
    sums the first chunk of every bag and adds the bag's parts in their order. The parts move at most 8 * d_in bytes
    for each chunk.
    """
    rows = rows.contiguous()
    end, more_chunks = begin + counts, (counts - 1).clamp_(min=0) // chunk
    part_end = more_chunks.cumsum(0)
    part_begin = part_end - more_chunks
    sums = rows.new_empty(len(counts), rows.shape[1], dtype=torch.float32)
    # Only the device knows the number of parts. This upper bound avoids a wait for the device.
    parts = rows.new_empty(len(index) // chunk, rows.shape[1], dtype=torch.float32)
    number = torch.arange(len(parts), device=rows.device)
    bag = torch.searchsorted(part_end, number, right=True)
    used = bag < len(counts)
    bag = bag.clamp_(max=len(counts) - 1)
    first = torch.where(used, begin[bag] + (number - part_begin[bag] + 1) * chunk, 0)
    last = torch.where(used, torch.minimum(first + chunk, end[bag]), 0)
    _launch_sums(parts, rows, index, weight, first, last)
    _launch_sums(sums, rows, index, weight, begin, torch.minimum(begin + chunk, end), parts, part_begin, part_end)
    return sums


def _launch_sums(
    out: Tensor,
    rows: Tensor,
    index: Tensor,
    weight: Tensor,
    begin: Tensor,
    end: Tensor,
    parts: Tensor | None = None,
    part_begin: Tensor | None = None,
    part_end: Tensor | None = None,
) -> None:
    bags, d_in = out.shape
    if bags == 0:
        return
    columns = columns_of(d_in)
    # The grid runs through all bags for one part of the columns, then for the next. That part of all rows may fit the
    # cache where the whole rows do not.
    grid = (bags, triton.cdiv(d_in, columns))
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        sum_bags[grid](out, rows, index, weight, begin, end, parts, part_begin, part_end, d_in, ROWS, columns)


def columns_of(d_in: int) -> int:
    """Columns of the part of a row that a program fetches at a time."""
    return min(COLUMNS, int(triton.next_power_of_2(d_in)))


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def sum_bags(
    out: tl.tensor,
    rows: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    parts: tl.tensor | None,
    part_begin: tl.tensor | None,
    part_end: tl.tensor | None,
    d_in: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sum one part of the columns of one bag: its entries from begin to end, then its parts, if there are any."""
    bag = tl.program_id(0).to(tl.int64)  # bags * d_in may pass 2^31
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d_in)[None, :]
    lane = tl.arange(0, ROWS)
    # Each lane adds its own rows. The lanes are added once, at the end, so the threads need not wait for each other.
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    last = tl.load(end + bag)
    for start in range(tl.load(begin + bag), last, ROWS):
        entry = start + lane
        live = entry < last
        row = tl.load(index + entry, mask=live, other=0)
        share = tl.load(weight + entry, mask=live, other=0.0)
        numbers = tl.load(rows + row[:, None] * d_in + column[None, :], mask=live[:, None] & inside, other=0.0)
        total += share[:, None] * numbers.to(tl.float32)
    if parts is not None:
        last = tl.load(part_end + bag)
        for start in range(tl.load(part_begin + bag), last, ROWS):
            entry = start + lane
            live = entry < last
            total += tl.load(parts + entry[:, None] * d_in + column[None, :], mask=live[:, None] & inside, other=0.0)
    tl.store(out + bag * d_in + column, tl.sum(total, 0), mask=column < d_in)


# The number of matches changes from step to step. Triton would compile the kernel again for numbers that 16 divides.
@triton.jit(do_not_specialize=["matches"])  # type: ignore[untyped-decorator]
def dots_kernel(
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    token: tl.tensor,
    feature: tl.tensor,
    matches: tl.tensor,
    d_in: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Compute the dot products of ROWS matches."""
    match = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = match < matches
    row = tl.load(token + match, mask=live, other=0) * d_in
    column = tl.load(feature + match, mask=live, other=0) * d_in
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, d_in, COLUMNS):
        position = start + tl.arange(0, COLUMNS)
        mask = live[:, None] & (position < d_in)[None, :]
        left = tl.load(rows + row[:, None] + position[None, :], mask=mask, other=0.0)
        right = tl.load(columns + column[:, None] + position[None, :], mask=mask, other=0.0)
        total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(out + match, tl.sum(total, 1), mask=live)
