"""Runs of a host's whole graph on texts, with the edits of each text on the tokens that its gate reaches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.gates import Gate, Positions, Spans, reached
from sae_runtime.deployed.batching import Batch, batches, of_tokens
from sae_runtime.deployed.host_sessions import HostSessions, OpenGraph
from sae_runtime.deployed.interventions import Requests, intervention_feed
from sae_runtime.text.tokens import Tokens

Run = tuple[Batch, list[NDArray[Any]], list[bool]]
"""A batch, the outputs, and whether each output has a row for each token."""


def run_texts(
    sessions: HostSessions,
    tokens: Sequence[Tokens],
    outputs: Sequence[str],
    *,
    edits: Mapping[str, Requests],
    gates: Sequence[Gate],
    pad: int,
    tokens_at_once: int,
) -> Iterator[Run]:
    """The outputs of the host, batch by batch.

    Args:
        sessions: of the model.
        tokens: of each text.
        outputs: names of the host's outputs.
        edits: of each text in plain numbers, by SAE.
        gates: of each text.
        pad: the id of padding.
        tokens_at_once: the most tokens of a batch; 1: each text is run alone.

    Raises:
        ValueError: a text has no tokens, a gate reaches none, an edit is not possible, or an output of a text with
            edits is NaN or Inf; the message names the text.
    """
    graph = sessions.open()
    for number, one in enumerate(tokens):
        if not len(one):
            raise ValueError(f"text {number} has no tokens, so the model computes nothing of it; leave it out")
    chosen = _chosen(tokens, gates) if edits else []
    per_token = [of_tokens(graph.outputs[name], graph.inputs.ids.shape) for name in outputs]
    # What is no row for each token, such as a score by the last token, may depend on padding. Where the graph takes one
    # length alone, and a mask, it was made for padded texts.
    is_made_so = graph.inputs.time is not None and graph.inputs.mask is not None
    pads = all(
        rows or is_made_so and len(graph.outputs[name]) < 3 for name, rows in zip(outputs, per_token, strict=True)
    )
    parts = batches([one.ids for one in tokens], graph.inputs, pad=pad, pads=pads, tokens=tokens_at_once)
    for batch in parts:
        feed = graph.inputs.feed(batch.ids, batch.mask)
        feed |= _asked(sessions, graph, batch, edits, chosen)
        arrays = sessions.run(graph, feed, outputs)
        for name, array, by_token in zip(outputs, arrays, per_token, strict=True):
            if by_token and array.shape[:2] != batch.ids.shape:
                raise ValueError(
                    f"{graph.path} gives {name} {list(array.shape)} for {len(batch.ids)} texts of {batch.ids.shape[1]} "
                    "tokens, expected a row for each token; export it again with all of them"
                )
            _refuse_overflow(name, array, by_token, batch, edits)
        yield batch, arrays, per_token


def _chosen(tokens: Sequence[Tokens], gates: Sequence[Gate]) -> list[NDArray[np.bool_] | None]:
    """The tokens that each text's gate reaches; None: all."""
    chosen: list[NDArray[np.bool_] | None] = []
    reaches: dict[Gate, bool] = {}
    for one, gate in zip(tokens, gates, strict=True):
        if gate == "all":
            chosen.append(None)
            continue
        inside = reached(gate, np.arange(len(one)), prompt=len(one), special=~one.kept, offsets=one.offsets)
        reaches[gate] = reaches.get(gate, False) or bool(inside.any())
        chosen.append(inside)
    for gate, some in reaches.items():
        if gate == "generated":
            raise ValueError("the gate 'generated' reaches no token here, where nothing is generated; give another")
        if not some and isinstance(gate, Positions | Spans):
            longest = max(len(one) for one in tokens)
            raise ValueError(f"the gate {gate} reaches no token of any text, the longest has {longest}; give another")
    return chosen


def _asked(
    sessions: HostSessions,
    graph: OpenGraph,
    batch: Batch,
    edits: Mapping[str, Requests],
    chosen: Sequence[NDArray[np.bool_] | None],
) -> dict[str, NDArray[Any]]:
    """The inputs of the SAEs for a batch."""
    if not edits:
        return intervention_feed(sessions.layout.splices, required=graph.required) if graph.required else {}
    rows = batch.texts + [batch.texts[0]] * (len(batch.ids) - len(batch.texts))
    requests = {name: [each[number] for number in rows] for name, each in edits.items()}
    gates = None
    if batch.is_padded or any(chosen[number] is not None for number in batch.texts):
        gates = batch.mask.astype(np.float32)  # an edit of padding could overflow, and reach the text as NaN
        for row, (number, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
            if (inside := chosen[number]) is not None:
                gates[row, :length] = inside
    return intervention_feed(sessions.layout.splices, edits=requests, gates=gates, required=graph.required)


def _refuse_overflow(
    name: str, array: NDArray[Any], by_token: bool, batch: Batch, edits: Mapping[str, Requests]
) -> None:
    """Refuse what is NaN or Inf by the edits of a text."""
    if not edits or array.dtype.kind != "f" or np.isfinite(array).all():
        return
    for row, (number, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
        own = array[row, :length] if by_token else array[row]
        if any(each[number] for each in edits.values()) and not np.isfinite(own).all():
            raise ValueError(
                f"text {number} gives NaN or Inf in {name} with its edits, which are too strong for this host; give "
                "smaller ones"
            )
