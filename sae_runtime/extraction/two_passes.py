"""How a source is read for the batch rule: its candidates, and the rows that need a second pass.

`engine.batch_rule` says why two passes are enough. Both are made part by part, by pure functions of the part and of
the bound that the first cut of all parts leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.parts import read_manifest
from sae_runtime.core.features import Features
from sae_runtime.deployed.reading_features import Lowered
from sae_runtime.engine.batch_encoding import first_slots, limits
from sae_runtime.engine.batch_rule import Candidates, first_pass, no_candidates, rows_again, second_pass
from sae_runtime.engine.rows import Rows
from sae_runtime.engine.tiler import tiles_of
from sae_runtime.engine.tiling import DEFAULT
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.part_rows import PartRows, Source
from sae_runtime.extraction.plan import Part
from sae_runtime.extraction.text_source import TextSource
from sae_runtime.text.tokens import Tokens

Limits = tuple[int, NDArray[np.int64] | None]


class FirstPass(NamedTuple):
    """What the first pass gives of the tokens of a part.

    Attributes:
        candidates: of shape (n,).
        lacking: the largest activation that each token may lack, or 0, float32 [n].
    """

    candidates: Features
    lacking: NDArray[np.float32]


class Passes(Protocol):
    """Reads the parts of a source for the batch rule. It pickles."""

    def limits(self, tokens: int) -> Limits:
        """M and the m_i of so many tokens, as `engine.batch_encoding.limits` gives them."""

    def first(self, part: Part) -> FirstPass:
        """The first pass over a part."""

    def second(self, part: Part, found: FirstPass, bound: NDArray[np.float32]) -> Features:
        """The candidates of a part that lacks none which reaches the bound.

        Args:
            part: the part.
            found: its first pass, cut by this bound.
            bound: f32 [1] or [d_sae].
        """

    def rows(self, part: Part, matches: Features) -> PartRows:
        """The rows of a part with these features."""


def passes_of(source: Source) -> Passes | None:
    """How a source is read; None where the batch rule is the served one, as for token choice.

    >>> passes_of(ArraySource(sae, activations_path)).limits(100)
    (600, None)

    Raises:
        ValueError: the SAE has no batch rule.
    """
    if isinstance(source, ArraySource):
        manifest = source.sae.manifest
    elif isinstance(source, TextSource):
        if not source.sae.by_threshold:
            return None
        if source.sae.bundle is None:
            raise ValueError(f"the batch rule of {source.sae.name} is not known: {source.sae.absent}")
        if f"{source.sae.name}_slots" not in source.sae.spliced.inputs:
            raise BundleError(
                f"{source.sae.graph} gives no more features than it was spliced for, and the batch rule may need more; "
                "splice the host again"
            )
        manifest = read_manifest(source.sae.bundle)
    else:
        raise ValueError(f"{type(source).__name__} has no batch rule; take the served one")
    if manifest.architecture.selection != "threshold" or manifest.batch_allocation.kind == "token":
        return None
    return ArrayPasses(source) if isinstance(source, ArraySource) else TextPasses(source)


@dataclass(frozen=True)
class ArrayPasses:
    """Passes over activations, with the bits of `SAE.encode_batch` over all of them."""

    source: ArraySource

    def limits(self, tokens: int) -> Limits:
        """As Passes."""
        encoder = self.source.sae.batch_encoder(tokens)
        return encoder.total, encoder.limit

    def first(self, part: Part) -> FirstPass:
        """As Passes."""
        encoder = self.source.sae.batch_encoder(len(self.source.activations))
        lacking = np.zeros(0, np.float32)

        def encode(part: Part) -> Features:
            nonlocal lacking
            rows, tokens = self._rows(part), part.end - part.begin
            candidates = Candidates(no_candidates(tokens, encoder.d_sae), encoder.total, encoder.limit, DEFAULT.fresh)
            tiles = tiles_of(np.arange(tokens), encoder.tile(tokens))
            lacking = first_pass(partial(encoder.encode, rows), candidates, tiles, encoder.floor)
            return candidates.features

        return FirstPass(self.source.rows(part, encode).features, lacking)

    def second(self, part: Part, found: FirstPass, bound: NDArray[np.float32]) -> Features:
        """As Passes."""
        encoder = self.source.sae.batch_encoder(len(self.source.activations))

        def encode(part: Part) -> Features:
            candidates = Candidates(found.candidates, encoder.total, encoder.limit, DEFAULT.fresh, bound)
            tile = encoder.tile(part.end - part.begin)
            second_pass(partial(encoder.encode, self._rows(part)), candidates, found.lacking, tile)
            return candidates.features

        return self.source.rows(part, encode).features

    def rows(self, part: Part, matches: Features) -> PartRows:
        """As Passes."""
        return self.source.rows(part, lambda _: matches)

    def _rows(self, part: Part) -> Rows:
        return Rows(self.source.activations.rows, np.arange(part.begin, part.end), (len(self.source.activations),))


@dataclass(frozen=True)
class TextPasses:
    """Passes over texts. In both, the spliced SAE has the threshold 0.

    A token that is read again keeps the activations it has: in other batches the host gives other last bits.
    """

    source: TextSource

    def limits(self, tokens: int) -> Limits:
        """As Passes."""
        allocation = read_manifest(self._bundle).batch_allocation
        return limits(allocation, self.source.sae.d_sae, tokens, k=allocation.k)

    def first(self, part: Part) -> FirstPass:
        """As Passes."""
        slots = self._slots()
        rows = self.source.rows(part, partial(self.source.read, lowered=Lowered(slots, np.inf)))
        features = rows.features
        full = np.flatnonzero(np.diff(features.indptr) == slots)
        lacking = np.zeros(len(features), np.float32)
        if slots < features.d_sae and len(full):
            lacking[full] = np.minimum.reduceat(features.take(full).values, np.arange(len(full)) * slots)
        return FirstPass(features, lacking)

    def second(self, part: Part, found: FirstPass, bound: NDArray[np.float32]) -> Features:
        """As Passes."""
        again = rows_again(found.lacking, bound)
        above = np.nextafter(bound, np.float32(0))
        lowered = Lowered(4 * self._slots(), float(above.min()))

        def read(windows: Sequence[Tokens], names: Sequence[object]) -> Features:
            """The features of the windows that have a row to be read again, and none of the others."""
            kept = np.concatenate([self._kept(window) for window in windows])
            is_again = np.zeros(len(kept), np.bool_)
            is_again[np.flatnonzero(kept)[again]] = True
            ends = np.cumsum([len(window) for window in windows])
            chosen = [n for n, end in enumerate(ends) if is_again[end - len(windows[n]) : end].any()]
            tokens = np.concatenate([np.arange(ends[n] - len(windows[n]), ends[n]) for n in chosen])
            features = self.source.read([windows[n] for n in chosen], [names[n] for n in chosen], lowered)
            return features.spread(tokens, (len(kept),))

        rows = self.source.rows(part, read).features.take(again)
        rows = rows.filter(rows.values > (above[rows.indices] if len(above) > 1 else above))
        return found.candidates.replaced(again, found.candidates.take(again).union(rows))

    def rows(self, part: Part, matches: Features) -> PartRows:
        """As Passes."""

        def read(windows: Sequence[Tokens], _: Sequence[object]) -> Features:
            kept = np.concatenate([np.zeros(0, np.bool_), *(self._kept(window) for window in windows)])
            return matches.spread(np.flatnonzero(kept), (len(kept),))

        return self.source.rows(part, read)

    @property
    def _bundle(self) -> Path:
        assert self.source.sae.bundle is not None  # `passes_of` checks it
        return self.source.sae.bundle

    def _slots(self) -> int:
        manifest = read_manifest(self._bundle)
        return min(first_slots(manifest, manifest.batch_allocation.k), self.source.sae.d_sae)

    def _kept(self, window: Tokens) -> NDArray[np.bool_]:
        """The tokens of a window that have rows."""
        return np.ones(len(window), np.bool_) if self.source.special else window.kept
