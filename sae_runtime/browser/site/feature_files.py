"""The files of an SAE's features: one walk through its store writes names and shards, and finds what else is shown."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.browser.site import shown
from sae_runtime.browser.site.feature_pages import feature_page, page_bytes
from sae_runtime.browser.site.names import TOKENS, Names
from sae_runtime.browser.site.sentences import Sentences
from sae_runtime.browser.site.shards import Shards
from sae_runtime.browser.site.starters import Starters
from sae_runtime.browser.site.whole_words import distinct, whole_words
from sae_runtime.store.open_store import Store

_SHARD = 512_000  # bytes of a shard, all of which a page loads to show one of its features
_LISTED = 1000  # files and licences that are counted


@dataclass(frozen=True)
class Seen:
    """What the walk saw: shards, features to look at first, and how many contexts are of each file and licence."""

    shards: dict[str, list[int]]
    starters: list[dict[str, Any]]
    files: Counter[str]
    licences: Counter[str]


def write_features(
    store: Store,
    folder: Path,
    *,
    per_band: tuple[int, int],
    sentences: Sentences,
    progress: Callable[[int], object],
) -> Seen:
    """Write the files of all features.

    Args:
        store: of the SAE.
        folder: of the SAE in the site.
        per_band: contexts of the top band that are shown, and of each other one.
        sentences: looks at the contexts.
        progress: called with numbers of features that are written.
    """
    names = Names(folder / "names")
    shards = Shards(folder / "features", digits=5, size=_SHARD)
    starters = Starters(store)
    files: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    for feature in store.features(per_band=per_band):
        words = whole_words(feature, store.token_name)
        page = feature_page(feature, words, store.token_name)
        label = page["label"] if feature.label_source != "top tokens" else None
        shards.put(feature.feature, page_bytes(page))
        tokens = distinct(words, TOKENS)
        names.put(feature.feature, label, tokens, page["density"], page["max"])
        starters.look_at(feature, page, label, tokens)
        sentences.look_at(feature.contexts)
        for context in feature.contexts:
            _count(files, shown.file_name(context.file))
            _count(licences, context.licence)
        progress(1)
    names.done()
    shards.done()
    return Seen({"features": shards.firsts, "names": names.firsts}, starters.chosen, files, licences)


def _count(counter: Counter[str], value: str | None) -> None:
    if value is not None and (value in counter or len(counter) < _LISTED):
        counter[value] += 1
