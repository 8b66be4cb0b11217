"""The features that the SAEs of a deployed model give for windows of tokens, with as many slots as the tokens need."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import BundleError
from sae_runtime.core.features import Features, from_slots
from sae_runtime.deployed.batching import Batch, batches
from sae_runtime.deployed.host_sessions import HostSessions
from sae_runtime.deployed.interventions import intervention_feed
from sae_runtime.deployed.spliced_sae import SplicedSAE

_MORE = 4  # times the slots, for tokens that filled theirs
_LONG = 32  # tokens of a window, from which on twice the slots at first cost less than to read it again


class Lowered(NamedTuple):
    """How features below the threshold are read.

    Attributes:
        slots: that are read of a token at first.
        low: a token that filled its slots with larger activations is read again; infinite: none is.
    """

    slots: int
    low: float


def read_features(
    sessions: HostSessions,
    saes: Mapping[str, SplicedSAE],
    parts: Sequence[NDArray[np.int64]],
    *,
    texts: Sequence[object],
    pad: int,
    tokens_at_once: int,
    lowered: Lowered | None = None,
) -> list[dict[str, Features]]:
    """The features of windows of tokens, by SAE; a window without tokens has none.

    Args:
        sessions: of the model.
        saes: that are read, by name.
        parts: ids of each window.
        texts: the number or the name of each window's text, for messages.
        pad: the id of padding.
        tokens_at_once: the most tokens of a batch; 1: each window is run alone.
        lowered: how features below the threshold are read, of the only SAE.

    Raises:
        BundleError: the graph gives something that is no features.
        ValueError: an activation of a feature is NaN or Inf; the message names the text.
    """
    found: list[dict[str, Features]] = [
        {name: from_slots([_nothing()], sae.d_sae, (0,)) for name, sae in saes.items()} if not len(ids) else {}
        for ids in parts
    ]
    longest = max(map(len, parts), default=0)
    slots = {name: _slots(sae, longest) if lowered is None else lowered.slots for name, sae in saes.items()}
    slots = {name: min(number, saes[name].d_sae) for name, number in slots.items()}
    low = 0.0 if lowered is None else lowered.low
    left = [number for number, ids in enumerate(parts) if len(ids)]
    while left:
        again: dict[str, set[int]] = {}
        graph = sessions.open(cut=True, lowered=None if lowered is None else next(iter(saes)))
        outputs = [name for sae in slots for name in (f"{sae}_indices", f"{sae}_values")]
        for batch in batches([parts[n] for n in left], graph.inputs, pad=pad, tokens=tokens_at_once):
            asked = {name: number for name, number in slots.items() if f"{name}_slots" in saes[name].spliced.inputs}
            feed = graph.inputs.feed(batch.ids, batch.mask)
            feed |= intervention_feed(sessions.layout.splices, slots=asked, required=graph.required)
            arrays = iter(sessions.run(graph, feed, outputs))
            for name, indices, values in zip(slots, arrays, arrays, strict=True):
                _check(graph.path, name, batch, indices, values)
                if batch.is_padded:
                    values[batch.mask == 0] = 0
                if not np.isfinite(values).all():
                    row = int(np.argmin(np.isfinite(values).all(axis=(1, 2))))
                    raise _overflow(texts[left[batch.texts[row]]], name)
                time, width = values.shape[1:]
                rows = indices.reshape(-1, width), values.reshape(-1, width)
                features = from_slots([rows], saes[name].d_sae, (len(rows[1]),))
                may_lack = saes[name].by_threshold and name in asked and asked[name] < saes[name].d_sae
                full = [bool(last.any()) for last in values[:, :, -1] > low] if may_lack else []
                for row, (number, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
                    begin = row * time
                    alone = length == len(features)
                    found[left[number]][name] = features if alone else features[begin : begin + length]
                    if may_lack and full[row]:
                        again.setdefault(name, set()).add(left[number])
        slots = {name: min(_MORE * slots[name], saes[name].d_sae) for name in again}
        left = sorted(set().union(*again.values()))
    return found


def _slots(sae: SplicedSAE, longest: int) -> int:
    """Slots of a token at first. One token in a thousand fills those of the SAE, and its window is read again."""
    return sae.slots * 2 if sae.by_threshold and longest >= _LONG else sae.slots


def _nothing() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32)


def _overflow(text: object, name: str) -> ValueError:
    return ValueError(
        f"text {text} has features of {name} that are NaN or Inf, since the host's activation is or overflows; use a "
        "float32 host, or leave the text out"
    )


def _check(graph: Any, name: str, batch: Batch, indices: NDArray[Any], values: NDArray[Any]) -> None:
    shape = values.shape
    sound = indices.dtype == np.int64 and values.dtype == np.float32 and indices.shape == shape
    if not sound or shape[:2] != batch.ids.shape or len(shape) != 3 or not shape[2]:
        raise BundleError(
            f"{graph} gives {indices.dtype} {list(indices.shape)} and {values.dtype} {list(shape)} as features of "
            f"{name}, expected int64 and float32 [{len(batch.ids)}, {batch.ids.shape[1]}, slots]; splice the host again"
        )
