"""Features of a batch: padding gives none, a text with NaN is named, and a text that filled its slots is read again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.bundle.splices import Spliced
from sae_runtime.deployed.host_inputs import HostInputs, Port
from sae_runtime.deployed.reading_features import Lowered, read_features
from sae_runtime.deployed.spliced_sae import SplicedSAE

SIZE = 40
PARTS = [np.arange(1, n + 1) for n in (10, 9, 10, 3)]  # the first three share a batch, in which the second is padded


class Graphs:
    """A host that gives token number n the features n to n + `active` - 1, and padding what is asked for."""

    def __init__(self, *, active: int = 2, padding: float = np.nan, broken: tuple[int, ...] = ()) -> None:
        ports = [Port(name, np.dtype(np.int64), ("b", "t")) for name in ("ids", "mask")]
        inputs = HostInputs(ids=ports[0], mask=ports[1])
        self.layout = SimpleNamespace(splices={"sae": spliced()})
        self.slots: list[int] = []
        self._graph = SimpleNamespace(path=Path("model.onnx"), inputs=inputs, required=frozenset())
        self._active, self._padding, self._broken = active, padding, broken

    def open(self, *, cut: bool, lowered: str | None) -> Any:
        assert cut
        self.lowered = lowered
        return self._graph

    def run(self, graph: Any, feed: dict[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        assert (graph, outputs) == (self._graph, ["sae_indices", "sae_values"])
        (slots,) = feed["sae_slots"]
        self.slots.append(int(slots))
        places = np.arange(slots)
        indices = feed["ids"][..., None] + places
        values = np.where(places < self._active, np.float32(1 + slots) - places.astype(np.float32), 0)
        values = np.broadcast_to(values, indices.shape).astype(np.float32)
        values[feed["mask"] == 0] = self._padding
        values[np.isin(feed["ids"], self._broken)] = np.nan
        return [indices, values]


def spliced() -> Spliced:
    return Spliced(
        name="sae",
        hook="layer.0",
        weights="",
        tensor="x",
        replace=False,
        d_in=4,
        d_sae=SIZE,
        slots=2,
        inputs=("sae_slots",),
        outputs=("sae_indices", "sae_values"),
    )


def read(graphs: Graphs, parts: list[NDArray[np.int64]], lowered: Lowered | None = None) -> list[Any]:
    saes = {"sae": SplicedSAE(spliced(), None, Path("model.onnx"), "", by_threshold=True)}
    texts = range(len(parts))
    found = read_features(graphs, saes, parts, texts=texts, pad=0, tokens_at_once=64, lowered=lowered)  # type: ignore[arg-type]
    return [one["sae"] for one in found]


@pytest.mark.parametrize("padding", [np.nan, 7.0])
def test_padding_gives_no_features(padding: float) -> None:
    for part, features in zip(PARTS, read(Graphs(active=1, padding=padding), PARTS), strict=True):
        assert features.shape == part.shape and features.indices.tolist() == part.tolist()
        features.check()


def test_a_text_with_nan_is_named() -> None:
    with pytest.raises(ValueError, match="text 2 has features of sae that are NaN or Inf"):
        read(Graphs(broken=(30,)), [*PARTS[:2], np.arange(21, 31)])


def test_texts_that_filled_their_slots_are_read_again() -> None:
    graphs = Graphs(active=3)
    for part, features in zip(PARTS, read(graphs, PARTS), strict=True):
        assert features.indices.tolist() == [n + more for n in part for more in range(3)]
    assert graphs.slots == [2, 2, 8, 8]


@pytest.mark.parametrize(("low", "asked"), [(np.inf, [3]), (2.5, [3]), (1.5, [3, 12, 40])])
def test_below_the_threshold_slots_and_what_is_read_again_are_the_callers(low: float, asked: list[int]) -> None:
    """The last of 3 slots holds 2, and that of 12 too: a token that may lack more than `low` is read again."""
    graphs = Graphs(active=12)
    (features,) = read(graphs, PARTS[:1], Lowered(3, low))
    assert (graphs.slots, graphs.lowered) == (asked, "sae")
    assert features.l0().tolist() == [min(asked[-1], 12)] * 10
    read(graphs, PARTS[:1])
    assert graphs.lowered is None


def test_a_long_text_gets_twice_the_slots_at_first() -> None:
    """Some token of it would often fill those of the SAE."""
    graphs, text = Graphs(active=4), np.ones(40, np.int64)
    (features,) = read(graphs, [text])
    assert features.indices.tolist() == 40 * [1, 2, 3, 4]
    assert graphs.slots == [4, 16]
    long, short = Graphs(active=3), Graphs(active=3)
    read(long, [text]), read(short, [text[:31]])
    assert (long.slots, short.slots) == ([4], [2, 8])
