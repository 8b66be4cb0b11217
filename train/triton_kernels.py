"""What a training step does with its matches on CUDA, by Triton kernels of our own.

`cpu_kernels` has the same functions for the CPU. With m matches, each kernel fetches m rows of d_in numbers and does
two operations with each number, so these fetches, counted in each docstring, are its cost; tensor cores would have
nothing to do. Sums are float32 whatever type the rows have.

Equal arguments give equal bits, and the sum of a token or feature does not depend on the others: nothing is added
atomically, and block sizes follow from d_in alone. They are fixed rather than tuned, since another size is another
order of summation. A row is fetched in parts of at most 256 columns, 1 KiB of float32 in one run; eight parts at a time
keep four loads of 16 bytes in flight for each of a program's 128 threads. Wider parts would waste more where d_in is no
power of two (768 = 3 * 256).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_runtime.train.matches import Matches

_ROWS = 8  # matches that a program fetches at a time
_COLUMNS = 256  # widest part of a row
_CHUNK = 128  # longest run of matches that one program sums; shorter ones leave more partial sums to write and read


def reconstruct(found: Matches, rows: Tensor) -> Tensor:
    """The sum over each token's matches of value times row[feature]: [d_sae, d_in] to [n, d_in], float32.

    Moves m * (d_in * s + 12) bytes in and 4 * n * d_in out, where a number in `rows` has s bytes.
    """
    counts = found.token_begin.diff()
    return _sums(rows, found.feature, found.values, found.token_begin[:-1], counts)


def dots(rows: Tensor, columns: Tensor, found: Matches) -> Tensor:
    """rows[token] . columns[feature] for every match: [n, d_in] and [d_sae, d_in] to [m], float32.

    Moves (n * s + m * t) * d_in + 16 * m bytes in and 4 * m out, where numbers in `rows` and `columns` have s and t
    bytes: a token's matches lie together, so its row stays near.
    """
    rows, columns = rows.contiguous(), columns.contiguous()
    m, d_in = len(found.at), rows.shape[1]
    products = rows.new_empty(m, dtype=torch.float32)
    if m:
        with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
            _dots[(triton.cdiv(m, _ROWS),)](
                products, rows, columns, found.token, found.feature, m, d_in, _ROWS, _columns_of(d_in)
            )
    return products


def sums_by_feature(rows: Tensor, weights: Tensor, found: Matches) -> Tensor:
    """The sum over each feature's matches of weight times row[token]: [n, d_in] and [m] to [d_sae, d_in], float32.

    Moves m * (d_in * s + 52) bytes in and out, with the matches put in order, and 4 * d_sae * d_in out, where a number
    in `rows` has s bytes.
    """
    token, weights = found.token[found.by_feature], weights[found.by_feature]
    return _sums(rows, token, weights, found.feature_begin, found.counts)


def _sums(rows: Tensor, index: Tensor, weight: Tensor, begin: Tensor, counts: Tensor) -> Tensor:
    """For each bag b, the sum of weight[s] * rows[index[s]] over the counts[b] places s from begin[b], [bags, d_in].

    A bag is a token's matches, or a feature's: some features match every token. What goes beyond a bag's first chunk is
    summed before, each chunk as a bag of its own, and these sums are added to the bag's in order. They move at most
    8 * d_in bytes for every 128 rows.
    """
    rows = rows.contiguous()
    end, extra = begin + counts, (counts - 1).clamp_(min=0) // _CHUNK
    part_end = extra.cumsum(0)
    part_begin = part_end - extra
    sums = rows.new_empty(len(counts), rows.shape[1], dtype=torch.float32)
    # The number of chunks is known on the device only; this bound on it costs no wait for the device.
    parts = rows.new_empty(len(index) // _CHUNK, rows.shape[1], dtype=torch.float32)
    number = torch.arange(len(parts), device=rows.device)
    bag = torch.searchsorted(part_end, number, right=True)
    used = bag < len(counts)
    bag = bag.clamp_(max=len(counts) - 1)
    first = torch.where(used, begin[bag] + (number - part_begin[bag] + 1) * _CHUNK, 0)
    last = torch.where(used, torch.minimum(first + _CHUNK, end[bag]), 0)
    _launch_sums(parts, rows, index, weight, first, last)
    _launch_sums(sums, rows, index, weight, begin, torch.minimum(begin + _CHUNK, end), parts, part_begin, part_end)
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
    columns = _columns_of(d_in)
    # Programs start with the bags of one part of the columns: its share of the rows may fit the cache where all do not.
    grid = (bags, triton.cdiv(d_in, columns))
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _sum_bags[grid](out, rows, index, weight, begin, end, parts, part_begin, part_end, d_in, _ROWS, columns)


def _columns_of(d_in: int) -> int:
    return min(_COLUMNS, int(triton.next_power_of_2(d_in)))


@triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
def _sum_bags(
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
    bag = tl.program_id(0).to(tl.int64)  # bags * d_in may pass 2^31
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < d_in)[None, :]
    lane = tl.arange(0, ROWS)
    # Rows are added up lane by lane and the lanes once, at the end: threads need not meet before.
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    last = tl.load(end + bag)
    for at in range(tl.load(begin + bag), last, ROWS):
        place = at + lane
        live = place < last
        row = tl.load(index + place, mask=live, other=0)
        share = tl.load(weight + place, mask=live, other=0.0)
        numbers = tl.load(rows + row[:, None] * d_in + column[None, :], mask=live[:, None] & inside, other=0.0)
        total += share[:, None] * numbers.to(tl.float32)
    if parts is not None:
        last = tl.load(part_end + bag)
        for at in range(tl.load(part_begin + bag), last, ROWS):
            place = at + lane
            live = place < last
            total += tl.load(parts + place[:, None] * d_in + column[None, :], mask=live[:, None] & inside, other=0.0)
    tl.store(out + bag * d_in + column, tl.sum(total, 0), mask=column < d_in)


# The number of matches changes from step to step; whether sixteen divides it is not worth another compilation.
@triton.jit(do_not_specialize=["matches"])  # type: ignore[untyped-decorator]
def _dots(
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
    match = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = match < matches
    row = tl.load(token + match, mask=live, other=0) * d_in
    column = tl.load(feature + match, mask=live, other=0) * d_in
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(0, d_in, COLUMNS):
        place = at + tl.arange(0, COLUMNS)
        mask = live[:, None] & (place < d_in)[None, :]
        left = tl.load(rows + row[:, None] + place[None, :], mask=mask, other=0.0)
        right = tl.load(columns + column[:, None] + place[None, :], mask=mask, other=0.0)
        total += left.to(tl.float32) * right.to(tl.float32)
    tl.store(out + match, tl.sum(total, 1), mask=live)
