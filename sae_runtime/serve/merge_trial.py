"""A trial at the start: whether a bundle's answers keep their bits when requests are merged, on this machine.

Products round by the order of their sums. Whether that depends on the other rows of a product is the choice of
onnxruntime's kernels, which differ by processor, by its threads and by the sizes of the SAE.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.core.features import from_slots
from sae_runtime.sae import SAE

_SIZES = (1, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 64)  # rows of requests
_PADDED = 16  # edits of the longest list that is padded
_TRIED = 16  # rows that are padded; one row may round alike by chance


class Merges(NamedTuple):
    """What may be merged.

    Attributes:
        encode: rows of any requests.
        decode: requests with as many slots.
        steer: requests of as many tokens and edits.
        padded: the numbers of edits of which requests of one token keep their bits, if edits that change nothing make
            them longer. With others the last sums are rounded in another order.
    """

    encode: bool
    decode: bool
    steer: bool
    padded: frozenset[int]


NEVER = Merges(encode=False, decode=False, steer=False, padded=frozenset())


def try_merging(sae: SAE) -> Merges:
    """Encode, decode and steer made-up rows alone and together, and compare all bits.

    >>> try_merging(sae).encode in (True, False)
    True
    """
    x = _made_up(sae, sum(_SIZES))
    steers = sae.manifest.architecture.d_out is None
    merges = steers and _holds(lambda: _steer(sae, x))
    return Merges(
        encode=_holds(lambda: _encode(sae, x)),
        decode=_holds(lambda: _decode(sae, x)),
        steer=merges,
        padded=_padded(sae, x) if merges else frozenset(),
    )


def _holds(trial: Callable[[], bool]) -> bool:
    try:
        return trial()
    except (ValueError, MemoryError):  # made-up rows may overflow in an SAE of unusual size, and then nothing is known
        return False


def _made_up(sae: SAE, rows: int) -> NDArray[np.float32]:
    """Activations with some active features and some noise, the same each time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, sae.d_in)).astype(np.float32)
    if sae.manifest.architecture.d_out is None and not sae.manifest.architecture.decodes_with_x:
        features = min(16, sae.d_sae)
        indices = np.stack([rng.permutation(sae.d_sae)[:features] for _ in range(rows)])
        values = rng.uniform(1, 10, indices.shape).astype(np.float32)
        x = x * 0.1 + sae.decode(from_slots([(indices, values)], sae.d_sae, (rows,)))
    return x


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _encode(sae: SAE, x: NDArray[np.float32]) -> bool:
    whole, begin = sae.encode(x), 0
    for size in _SIZES:
        alone, merged = sae.encode(x[begin : begin + size]), whole[begin : begin + size]
        if not (_same(alone.indices, merged.indices) and _same(alone.values, merged.values)):
            return False
        begin += size
    return True


def _decode(sae: SAE, x: NDArray[np.float32]) -> bool:
    rows = min(len(x), sae.decoded_tile)
    rng = np.random.default_rng(1)
    for slots in (1, 7, 32):
        slots = min(slots, sae.d_sae)
        indices = np.stack([np.sort(rng.permutation(sae.d_sae)[:slots]) for _ in range(rows)])
        values = rng.uniform(0.1, 10, indices.shape).astype(np.float32)
        features = from_slots([(indices, values)], sae.d_sae, (rows,))
        whole, begin = sae.decode(features, x[:rows]), 0
        for size in _SIZES[1::2]:
            part = slice(begin, begin + size)
            if begin + size <= rows and not _same(sae.decode(features[part], x[part]), whole[part]):
                return False
            begin += size
    return True


def _lists(sae: SAE, x: NDArray[np.float32], counts: list[int]) -> list[list[Edit]]:
    """For each row [d_in] so many edits; of its active features first, since those that are not round nothing."""
    rng = np.random.default_rng(2)
    indices, values = sae.encode_slots(x)
    found = []
    for count, features, active in zip(counts, indices, values > 0, strict=True):
        own = rng.permutation(features[active])[: max(count - count // 3, 1)]
        others = rng.permutation(sae.d_sae)
        features = np.concatenate([own, others[~np.isin(others, own)]])[: min(count, sae.d_sae)]
        found.append([Edit.set(int(i), float(rng.uniform(1, 10))) for i in rng.permutation(features)])
    return found


def _steer(sae: SAE, x: NDArray[np.float32]) -> bool:
    for edits in (1, 3, 8):
        for tokens in (1, 2, 16):
            requests = 4
            batch = x[: requests * tokens].reshape(requests, tokens, sae.d_in)
            if not _alone(sae, batch, _lists(sae, batch[:, 0], [edits] * requests)):
                return False
    return True


def _padded(sae: SAE, x: NDArray[np.float32]) -> frozenset[int]:
    """The numbers of edits that may be padded, where requests of one number keep their bits together."""
    counts = range(1, min(_PADDED, sae.d_sae) + 1)
    rows = x[:_TRIED]
    try:
        lists = {count: _lists(sae, rows, [count] * len(rows)) for count in counts}
        alone = {count: sae.steer(rows[:, None], lists[count]) for count in counts}
        kept = set(counts)
        for longest in counts:
            shorter = [count for count in kept if count < longest]
            batch = np.concatenate([rows] * (len(shorter) + 1))[:, None]
            together = sae.steer(batch, [one for count in (*shorter, longest) for one in lists[count]])
            for count, own in zip(shorter, np.split(together, len(shorter) + 1)[:-1], strict=True):
                if not _same(alone[count], own):
                    kept.discard(count)
    except (ValueError, MemoryError):  # as in `_holds`
        return frozenset()
    return frozenset(kept)


def _alone(sae: SAE, batch: NDArray[np.float32], edits: list[list[Edit]]) -> bool:
    together = sae.steer(batch, edits)
    return all(
        _same(sae.steer(one[None], [own]), merged[None])
        for one, own, merged in zip(batch, edits, together, strict=True)
    )
