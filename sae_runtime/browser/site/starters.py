"""Features to look at first: one of each part of the SAE."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_runtime.browser.site.segments import segments
from sae_runtime.store.open_store import Store
from sae_runtime.store.records import StoredFeature

MOST = 24
_DENSITIES = (1e-5, 0.03)  # a denser feature is active on texts of every kind, a rarer one may be active by chance
_FEWEST = 20  # rows on which the feature is active
_DOCUMENTS = (0.0, 0.9), 3  # the same two where a row is a document, on which many features are active
_TOKENS = 5


class Starters:
    """Keeps the best feature of each of MOST equal ranges of features.

    A feature with a label of a person or an import is better than one without. Among the others the better one is more
    concentrated: a larger share of its sum of activations lies on its five top tokens, of which none has it almost
    alone, since a feature of one token is easily read and says little. A feature of a store without tokens is better
    if its largest activation is larger compared with its mean. A feature that is weaker than most counts for less.
    """

    def __init__(self, store: Store) -> None:
        """Begin with none of a store's features."""
        self._d_sae, self._name_of = len(store), store.token_name
        self._limits = _DOCUMENTS if store.description.per == "document" else (_DENSITIES, _FEWEST)
        active = store.max[store.count > 0]
        self._usual = float(np.median(active)) if len(active) else 1.0
        self._best: dict[int, tuple[tuple[bool, float], dict[str, Any]]] = {}

    def look_at(self, feature: StoredFeature, page: dict[str, Any], label: str | None, tokens: Sequence[str]) -> None:
        """Take a feature, with its page, its label by a person or an import, and the tokens that name it otherwise."""
        if not feature.contexts or (label is None and not _is_plain(feature, *self._limits)):
            return
        place = feature.feature * MOST // self._d_sae
        rank = (label is not None, interest(feature) * min(feature.max / self._usual, 1.0))
        if place in self._best and self._best[place][0] >= rank:
            return
        text, peak = segments(feature.contexts[0], self._name_of)
        shown = {name: page[name] for name in ("feature", "density", "max")}
        self._best[place] = rank, {**shown, "label": label, "tokens": list(tokens), "text": text, "peak": peak}

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """The objects of the features, in order."""
        return [shown for _, (_, shown) in sorted(self._best.items(), key=lambda each: each[0])]


def interest(feature: StoredFeature) -> float:
    """How concentrated a feature is, from 0 to 1.

    >>> from sae_runtime.store.open_store import open_store
    >>> 0 < interest(open_store(store_path).feature(3)) <= 1
    True
    """
    whole = feature.count * feature.mean
    if not feature.top_tokens or whole <= 0:
        return 1 - feature.mean / feature.max if feature.max > 0 else 0.0
    shares = sorted((count * mean / whole for _, count, mean in feature.top_tokens), reverse=True)[:_TOKENS]
    return max(min(sum(shares), 1.0) * (1 - max(shares[0] - 0.5, 0)), 0.0)


def _is_plain(feature: StoredFeature, densities: tuple[float, float], fewest: int) -> bool:
    low, high = densities
    return low <= feature.density <= high and feature.count >= fewest
