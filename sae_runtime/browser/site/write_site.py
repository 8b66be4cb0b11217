"""Write a site about the features of stores."""

import importlib.metadata
import importlib.resources
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.browser.site import shown
from sae_runtime.browser.site.feature_pages import feature_page
from sae_runtime.browser.site.folder_names import folder_names
from sae_runtime.browser.site.names import TOKENS, Names
from sae_runtime.browser.site.overview import overview
from sae_runtime.browser.site.segments import segments
from sae_runtime.browser.site.shards import Shards, json_bytes, write_json
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import new_folder
from sae_runtime.core.progress import progress_bar
from sae_runtime.store.open_store import Store, open_store
from sae_runtime.store.records import StoredFeature

FORMAT = 1
_SHARD = 512_000  # bytes of a shard of features, which a page loads to show one of them


@dataclass(frozen=True, kw_only=True)
class Site:
    """What `write_site` wrote: the names of its SAEs, number of features, bytes of all files and of the largest."""

    saes: tuple[str, ...]
    features: int
    size: int
    largest: int


def write_site(
    stores: Sequence[str | Path],
    out: Path,
    *,
    model: str | Path | None = None,
    title: str | None = None,
    top: int = 20,
    per_band: int = 5,
    force: bool = False,
    progress: bool = False,
) -> Site:
    """Write a site. It appears whole or not at all.

    Args:
        stores: feature stores, one for each SAE.
        out: the folder to make.
        model: a deployed model, whose copy runs in the page.
        title: of the site.
        top: contexts of the top band of a feature that are shown at most.
        per_band: contexts of each other band.
        force: replace an existing site.
        progress: show the progress on stderr.
    """
    require("extract")
    opened = [open_store(path) for path in stores]
    names = folder_names([store.description.sae or store.path.name for store in opened])
    with (
        new_folder(out, force=force, foreign=foreign) as folder,
        progress_bar(sum(map(len, opened)), "features", shown=progress) as bar,
    ):
        _copy_assets(folder)
        saes = []
        for store, name in zip(opened, names, strict=True):
            place = folder / "data" / name
            place.mkdir(parents=True)
            _write_sae(store, name, place, top, per_band, bar)
            saes.append(_sae(store, name, top, per_band))
        described = {"format": FORMAT, "made_by": f"sae-runtime {importlib.metadata.version('sae-runtime')}"}
        described |= {"title": shown.bounded(title or _title(opened), 200), "saes": saes, "model": None}
        write_json(folder / "serve.json", {})
        write_json(folder / "site.json", described)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Site(saes=tuple(names), features=sum(map(len, opened)), size=sum(sizes), largest=max(sizes))


def foreign(folder: Path) -> str | None:
    """The name of an entry of a folder that is none of a site's, or None."""
    entries = sorted(entry.name for entry in folder.iterdir())
    known = {"index.html", "code", "vendor", "site.json", "serve.json", "data", "model"}
    return next((name for name in entries if name not in known or "site.json" not in entries), None)


def _copy_assets(folder: Path) -> None:
    """Copy the page, its code and the vendored libraries."""
    with importlib.resources.as_file(importlib.resources.files("sae_runtime.browser") / "assets") as assets:
        (folder / "code").mkdir()
        for source, target in (("site", "code"), ("shared", "code/shared"), ("vendor", "vendor")):
            if (assets / source).is_dir():
                shutil.copytree(assets / source, folder / target, dirs_exist_ok=True)
        if (folder / "code" / "index.html").is_file():
            (folder / "code" / "index.html").rename(folder / "index.html")


def _title(stores: Sequence[Store]) -> str:
    models = list(dict.fromkeys(store.description.model for store in stores if store.description.model))
    return f"Features of {', '.join(models)}" if models else "Features"


def _sae(store: Store, name: str, top: int, per_band: int) -> dict[str, Any]:
    of = store.description
    return {
        "name": name,
        "folder": f"data/{name}",
        "d_sae": of.d_sae,
        "tokens": of.tokens,
        "per": of.per,
        "hook": shown.name(of.hook),
        "model": shown.name(of.model),
        "weights_sha256": of.weights_sha256,
        "shown": {"top": top, "per_band": per_band},
    }


def _write_sae(store: Store, name: str, folder: Path, top: int, per_band: int, bar: Any) -> None:
    names = Names(folder / "names")
    shards = Shards(folder / "features", digits=5, size=_SHARD)
    texts: Counter[str | None] = Counter()
    starters: list[dict[str, Any]] = []
    for feature in store:
        words = [shown.bounded(text, shown.TOKEN) for text, _, _ in feature.top_tokens]
        contexts = [context for context in feature.contexts]
        page = feature_page(feature, words, contexts)
        shards.put(feature.feature, json_bytes(page))
        label = page["label"] if feature.label_source != "top tokens" else None
        names.put(feature.feature, label, words[:TOKENS], page["density"], page["max"])
        texts.update({shown.file_name(context.file) for context in contexts})
        if len(starters) < 24 and feature.contexts and feature.feature % 64 == 0:
            starters.append(_starter(feature))
        bar.update(1)
    names.done()
    shards.done()
    known = overview(store, name)
    known["texts"] = [{"file": file, "documents": None} for file in texts if file is not None]
    known["licences"] = [] if store.description.licence is None else [shown.name(store.description.licence)]
    known["starters"] = starters
    known["shards"] = {"features": shards.firsts, "names": names.firsts}
    write_json(folder / "overview.json", known)


def _starter(feature: StoredFeature) -> dict[str, Any]:
    return {
        "feature": feature.feature,
        "label": feature.label,
        "density": shown.short(feature.density),
        "max": shown.short(feature.max),
        "text": segments(feature.contexts[0])[0],
    }
