"""What site.json says: the site, its SAEs, and where its model is described."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from sae_runtime.browser.site import shown
from sae_runtime.store.open_store import Store

FORMAT = 1
_TITLE = 200  # characters


def site_facts(
    stores: Sequence[Store], names: Sequence[str], *, title: str | None, per_band: tuple[int, int], has_model: bool
) -> dict[str, Any]:
    """The object of site.json.

    Args:
        stores: of the SAEs.
        names: of the SAEs in the site.
        title: of the site; None: it names the host model.
        per_band: contexts of a feature's top band that are shown at most, and of each other one.
        has_model: whether the site has a model.json.

    >>> from sae_runtime.store.open_store import open_store
    >>> facts = site_facts([open_store(store_path)], ["mutual"], title=None, per_band=(20, 5), has_model=False)
    >>> facts["format"], facts["saes"][0]["folder"], facts["model"]
    (1, 'data/mutual', None)
    """
    return {
        "format": FORMAT,
        "made_by": f"sae-runtime {importlib.metadata.version('sae-runtime')}",
        "title": shown.bounded(title or _title(stores), _TITLE),
        "saes": [_sae(store, name, per_band) for store, name in zip(stores, names, strict=True)],
        "model": "model/model.json" if has_model else None,
    }


def _title(stores: Sequence[Store]) -> str:
    models = [shown.model_name(store.description.model) for store in stores]
    known = dict.fromkeys(model for model in models if model)
    return f"Features of {', '.join(known)}" if known else "Features"


def _sae(store: Store, name: str, per_band: tuple[int, int]) -> dict[str, Any]:
    of = store.description
    return {
        "name": name,
        "folder": f"data/{name}",
        "d_sae": of.d_sae,
        "tokens": of.tokens,
        "per": of.per,
        "hook": shown.name(of.hook),
        "model": shown.model_name(of.model),
        "weights_sha256": of.weights_sha256,
        "shown": {"top": per_band[0], "per_band": per_band[1]},
    }
