"""The inputs of SAEs in a graph, for a batch of requests: slots to read, and edits with the tokens that they reach."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.splices import Spliced
from sae_runtime.core.edits import Edit, as_inputs, without_gate

Arrays = dict[str, NDArray[Any]]
Requests = Sequence[Sequence[Edit]]
"""The edits of one SAE for each request, in plain numbers, as `core.edits.resolved` gives them."""

_ALWAYS = -1.0  # every feature exceeds it


def intervention_feed(
    splices: Mapping[str, Spliced],
    *,
    edits: Mapping[str, Requests] | None = None,
    gates: NDArray[np.float32] | None = None,
    slots: Mapping[str, int] | None = None,
    required: Collection[str] = (),
) -> Arrays:
    """The inputs of a graph's SAEs for one run. What is not asked for is left out, if the graph allows it.

    Args:
        splices: of the graph, by name.
        edits: of each request, [b], by the name of the SAE.
        gates: how much of the edits each new token gets, [b, t]; None: all of them, everywhere.
        slots: how many features of each token are read, by the name of the SAE.
        required: names of the inputs that have no default.

    Raises:
        ValueError: the SAE cannot be edited or read, a feature is out of range or edited twice, or an edit can only be
            on tokens where its feature is active and the graph's inputs cannot say this beside other edits.

    >>> from pathlib import Path
    >>> from sae_runtime.bundle.graph_reader import read_metadata
    >>> from sae_runtime.bundle.splices import read_splices
    >>> intervention_feed(read_splices(read_metadata(Path(host_path))))
    {}
    """
    feed: Arrays = {}
    for name, spliced in splices.items():
        requests = (edits or {}).get(name, ())
        if any(requests):
            feed |= _edits(spliced, requests, gates)
        if (asked := (slots or {}).get(name, 0)) > 0:
            if f"{name}_slots" not in spliced.inputs:
                raise ValueError(f"{name} gives no features; splice the host again with an SAE that is read")
            feed[f"{name}_slots"] = np.array([asked])
        for other in spliced.inputs:
            if other in required and other not in feed:
                feed[other] = _neutral(other.removeprefix(f"{name}_"))
    return feed


def _edits(spliced: Spliced, requests: Requests, gates: NDArray[np.float32] | None) -> Arrays:
    name = spliced.name
    if f"{name}_features" not in spliced.inputs:
        raise ValueError(f"{name} takes no edits: it is a transcoder, or was spliced to be read alone")
    plain, conditions = zip(*(_plain(edits) for edits in requests), strict=True)
    if len(requests) > 1 and all(edits == plain[0] for edits in plain[1:]) and len(set(conditions)) == 1:
        plain, conditions = plain[:1], conditions[:1]
    feed = as_inputs(plain, spliced.d_sae)
    if gates is not None:
        feed["gate"] = gates[..., None].astype(np.float32, copy=False)
    if any(condition is not None for condition in conditions):
        feed["when"] = np.array([[condition or 0] for condition in conditions])
        feed["above"] = np.array([[_ALWAYS if condition is None else 0.0] for condition in conditions], np.float32)
    return {f"{name}_{key}": array for key, array in feed.items()}


def _plain(edits: Sequence[Edit]) -> tuple[list[Edit], int | None]:
    """The edits of a request as the graph takes them, and the feature that must be active wherever they act."""
    plain = [without_gate(edit) for edit in edits]
    if None not in plain:
        return plain, None  # type: ignore[return-value]
    if len(edits) == 1:
        (edit,) = edits
        return [Edit(edit.feature, edit.factor, edit.shift, edit.low, edit.high)], int(edit.feature)
    edit = edits[plain.index(None)]
    raise ValueError(
        f"the edit of feature {edit.feature} is only where it is active, which a graph cannot say beside other edits "
        "of the same text; give it alone, or without only_active"
    )


def _neutral(kind: str) -> NDArray[Any]:
    """A required input that asks for nothing."""
    match kind:
        case "slots":
            return np.zeros(1, np.int64)
        case "gate" | "direction":
            return np.full((1, 1, 1), float(kind == "gate"), np.float32)
        case "features" | "when":
            return np.zeros((1, 0), np.int64)
    return np.zeros((1, 0), np.float32)
