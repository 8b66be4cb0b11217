"""What a site says of an SAE as a whole."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_runtime.browser.site import bundle_facts, densities, shown
from sae_runtime.browser.site.shown import short
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.store.open_store import Store

_FILES = 100  # files and licences of texts that are named
_ACTIVE = 100_000  # numbers of active features
_SENTENCE = 500  # characters


def overview(
    store: Store, name: str, manifest: Manifest | None, files: Counter[str], licences: Counter[str]
) -> dict[str, Any]:
    """The facts of `overview.json`, without those that follow from its features.

    Args:
        store: of the SAE.
        name: of the SAE in the site.
        manifest: of its bundle, if that is known.
        files: of the contexts, for a store that does not know the files of all its documents.
        licences: likewise.
    """
    of = store.description
    known = of.active is not None and len(of.active) <= _ACTIVE
    return {
        "name": name,
        "model": shown.model_name(of.model),
        "hook": shown.name(of.hook),
        "d_sae": of.d_sae,
        "per": of.per,
        "tokens": of.tokens,
        "documents": of.documents,
        "matches": of.matches,
        "l0": short(of.matches / max(of.tokens, 1)),
        "active": list(of.active) if known and of.active is not None else None,
        "dead": int(np.count_nonzero(store.count == 0)),
        "density": densities.by_rank(store.density),
        "law": bundle_facts.law(store.density, manifest),
        "histogram_of_density": densities.histogram(store.density),
        "measured": bundle_facts.measured(manifest),
        "allocation": bundle_facts.allocation(manifest),
        "texts": _texts(of.by_file, files),
        "licences": _licences(of.by_licence or licences, of.licence),
        "left_out": [shown.bounded(sentence, _SENTENCE) for sentence in of.left_out[:_FILES]],
    }


def _texts(known: Mapping[str, int] | None, of_contexts: Counter[str]) -> list[dict[str, Any]]:
    """The files of the texts by their names, and the number of documents of each where the store knows it."""
    counted: Counter[str] = Counter()
    for path, documents in (known or of_contexts).items():
        counted[shown.file_name(path) or ""] += documents
    largest = counted.most_common(_FILES)
    listed = [{"file": file, "documents": documents if known else None} for file, documents in largest]
    if known and (others := sum(known.values()) - sum(documents for _, documents in largest)):
        listed.append({"file": f"{len(counted) - len(largest):,} other files", "documents": others})
    return listed


def _licences(known: Mapping[str, int], of_corpus: str | None) -> list[str]:
    """The licences of the texts, the most usual one first."""
    names = [*dict(Counter(known).most_common(_FILES)), *([] if of_corpus is None else [of_corpus])]
    return list(dict.fromkeys(shown.name(name) or "" for name in names))
