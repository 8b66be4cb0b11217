"""What a site says of an SAE as a whole."""

from typing import Any

import numpy as np

from sae_runtime.browser.site import densities, shown
from sae_runtime.browser.site.shown import short
from sae_runtime.store.open_store import Store


def overview(store: Store, name: str) -> dict[str, Any]:
    """The facts of `overview.json` that the store knows by itself, without those that features are read for."""
    of = store.description
    return {
        "name": name,
        "model": shown.name(of.model),
        "hook": shown.name(of.hook),
        "d_sae": of.d_sae,
        "per": of.per,
        "tokens": of.tokens,
        "documents": of.documents,
        "matches": of.matches,
        "l0": short(of.matches / max(of.tokens, 1)),
        "active": None,
        "dead": int(np.count_nonzero(store.count == 0)),
        "density": densities.by_rank(store.density),
        "law": None,
        "histogram_of_density": densities.histogram(store.density),
        "measured": None,
        "allocation": None,
        "left_out": [shown.bounded(sentence, 1000) for sentence in of.left_out],
    }
