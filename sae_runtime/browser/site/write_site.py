"""Write a site about the features of stores, and of a model that runs in its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_runtime.browser.site.assets import copy_libraries, copy_page
from sae_runtime.browser.site.bundle_facts import Known, by_weights
from sae_runtime.browser.site.feature_files import write_features
from sae_runtime.browser.site.folder_names import folder_names
from sae_runtime.browser.site.inputs import SITE
from sae_runtime.browser.site.overview import overview
from sae_runtime.browser.site.sentences import Sentences
from sae_runtime.browser.site.shards import write_json
from sae_runtime.browser.site.site_json import site_facts
from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import new_folder
from sae_runtime.bundle.hub import local
from sae_runtime.bundle.outputs import Output
from sae_runtime.core.progress import progress_bar
from sae_runtime.store.open_store import Store, open_store

if TYPE_CHECKING:
    from sae_runtime.model import Model

_NAMES = ("index.html", "code", "vendor", SITE, "serve.json", "data", "model")
# Contexts of the top band of a feature, and of each other one: the most that keep a site of five bands below 1 GB.
_PER_BAND = ((20, 5), (10, 2), (8, 1))
_CONTEXTS = 1_600_000  # of all features together


@dataclass(frozen=True, kw_only=True)
class Site:
    """What `write_site` wrote.

    Attributes:
        saes: names of the SAEs in the site.
        features: of all SAEs.
        per_band: contexts that are shown of a feature's top band at most, and of each other one.
        size: bytes of all files.
        largest: bytes of the largest file of features.
        model: the object of model.json; None without a model.
        notes: sentences about what may be missed.
    """

    saes: tuple[str, ...]
    features: int
    per_band: tuple[int, int]
    size: int
    largest: int
    model: Mapping[str, Any] | None
    notes: tuple[str, ...]


def write_site(
    stores: Sequence[str | Path],
    out: str | Path,
    *,
    model: "Model | None" = None,
    write_graph: Callable[..., Any] | None = None,
    saes: Sequence[str | Path] = (),
    title: str | None = None,
    top: int | None = None,
    per_band: int | None = None,
    int8: bool = False,
    large: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Site:
    """Write a site: static files about the features of stores. It appears whole or not at all.

    Args:
        stores: feature stores, one for each SAE.
        out: the folder to make.
        model: a deployed model, a copy of which runs in the page.
        write_graph: `exports.page_graph.write_page_graph`, which writes the graph of the model.
        saes: bundles of the SAEs, which know how these were fitted; those of the model are known without.
        title: of the site; None: it names the host model.
        top: contexts of the top band of a feature that are shown at most; None: 20, fewer of more than 40,000 features.
        per_band: contexts of each other band, 0 or more; None: 5, likewise.
        int8: keep the model's weights in eight bits.
        large: write the model also where it is larger than a page loads at ease.
        force: replace an existing site.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or holds what is not of a site.
        ImportError: pyarrow is not installed.
        ValueError: there is no store, a store is none or was altered, a bundle is of none of the stores, the model has
            no SAE, or a setting is out of range.

    >>> made = write_site([store_path], "features-site", saes=[bundle_path])
    >>> made.features, made.per_band
    (150, (20, 5))
    """
    require("extract")
    if (top is not None and top < 1) or (per_band is not None and per_band < 0):
        raise ValueError(f"top is 1 or more contexts and per_band 0 or more, got {top} and {per_band}")
    if not stores:
        raise ValueError("a site needs at least one feature store; make one: sae-runtime features build")
    if (model is None) != (write_graph is None):
        raise ValueError("a model and write_graph go together; give sae_runtime.exports.page_graph.write_page_graph")
    out, bundles = Path(out), [local(path) for path in saes]
    read = [("store", Path(path)) for path in stores] + [("bundle", path) for path in bundles]
    for kind, path in read if model is None else [*read, ("model", model.layout.graph.parent)]:
        Output(path=out, kind="folder", force=force, inputs={kind: path}, foreign=foreign).check()
    opened = [open_store(path) for path in stores]
    known = _known(opened, model, bundles)
    names = folder_names([store.description.sae or store.path.resolve().name for store in opened])
    features = sum(map(len, opened))
    shown_per_band = _chosen(top, per_band, features)
    sentences = Sentences()
    with (
        new_folder(out, force=force, foreign=foreign) as folder,
        progress_bar(features, "features", shown=progress) as bar,
    ):
        copy_page(folder)
        for store, name in zip(opened, names, strict=True):
            place = folder / "data" / name
            place.mkdir(parents=True)
            seen = write_features(store, place, per_band=shown_per_band, sentences=sentences, progress=bar.update)
            bundle = known.get(store.description.weights_sha256)
            facts = overview(store, name, None if bundle is None else bundle.manifest, seen.files, seen.licences)
            write_json(place / "overview.json", {**facts, "starters": seen.starters, "shards": seen.shards})
        largest = max((path.stat().st_size for path in (folder / "data").rglob("*.json")), default=0)
        part = None
        if model is not None and write_graph is not None:
            weights = {store.description.weights_sha256: name for store, name in zip(opened, names, strict=True)}
            part = _write_model(model, folder, weights, sentences.chosen, write_graph, int8=int8, large=large)
        write_json(folder / "serve.json", {})
        described = site_facts(opened, names, title=title, per_band=shown_per_band, has_model=part is not None)
        write_json(folder / SITE, described)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Site(
        saes=tuple(names),
        features=features,
        per_band=shown_per_band,
        size=size,
        largest=largest,
        model=part,
        notes=tuple(_notes(opened, names, known, model, part)),
    )


def site_output(path: Path, *, force: bool) -> Output:
    """The output of `write_site`, which callers check before long work.

    >>> site_output(Path("no-site"), force=False).check()
    """
    return Output(path=path, kind="folder", force=force, foreign=foreign)


def foreign(folder: Path) -> str | None:
    """The name of an entry of a folder that is none of a site's, or None."""
    entries = sorted(entry.name for entry in folder.iterdir())
    return next((name for name in entries if name not in _NAMES or SITE not in entries), None)


def _known(stores: Sequence[Store], model: "Model | None", saes: Sequence[Path]) -> dict[str, Known]:
    """The bundles of the stores' SAEs by the sha256 of their weights."""
    if model is not None and not model.saes:
        raise ValueError(f"{model.layout.graph} has no SAE in its graph; put the stores' in: sae-runtime splice")
    named = by_weights(saes)
    of_stores = {store.description.weights_sha256 for store in stores}
    for weights, bundle in named.items():
        if weights not in of_stores:
            raise ValueError(f"no store has the features of {bundle.path}; name the bundles of the stores alone")
    return {**({} if model is None else by_weights(model.layout.bundles.values())), **named}


def _chosen(top: int | None, per_band: int | None, features: int) -> tuple[int, int]:
    """The contexts of each band that a site of so many features shows."""
    usual = next((each for each in _PER_BAND if features * (each[0] + 4 * each[1]) <= _CONTEXTS), _PER_BAND[-1])
    return usual[0] if top is None else top, usual[1] if per_band is None else per_band


def _write_model(
    model: "Model",
    folder: Path,
    names: Mapping[str, str],
    sentences: Sequence[str],
    write_graph: Callable[..., Any],
    *,
    int8: bool,
    large: bool,
) -> dict[str, Any]:
    """Write the model, and the libraries that run it where the page can."""
    from sae_runtime.browser.site.model_part import write_model_part

    place = folder / "model"
    part = write_model_part(
        model, place, write_graph=write_graph, saes=names, sentences=sentences, int8=int8, large=large
    )
    if part["problem"] is None:
        copy_libraries(folder)
    return part


def _notes(
    stores: Sequence[Store],
    names: Sequence[str],
    known: Mapping[str, Known],
    model: "Model | None",
    part: Mapping[str, Any] | None,
) -> list[str]:
    """What the reader of the site may miss, and how it comes in."""
    notes = []
    for store, name in zip(stores, names, strict=True):
        if store.description.weights_sha256 not in known:
            notes.append(f"{name}: how it was fitted and what it explains is not known; name its bundle by --sae")
    if model is not None and part is not None:
        if all(sae["site"] is None for sae in part["saes"]):
            notes.append("the model has other SAEs than the stores, so that what it shows has no page here")
        if part["problem"] is not None:
            notes.append(f"the page does not run the model: {part['problem']}")
        notes += part["notes"]
    return notes
