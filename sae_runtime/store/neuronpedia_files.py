"""A feature store as files of Neuronpedia's feature pages, as SAEDashboard writes them.

| file | content |
|---|---|
| `batch-0.json`, ... | 128 features each, by the names of SAEDashboard's `NeuronpediaDashboardFeature` |
| `skipped_indexes.json` | features that are active on no token |
| `run_settings.json` | how the pages were made, by the names of its `NeuronpediaRunnerConfig` |
| `explanations.jsonl` | labels that people gave or imported, as Neuronpedia's dumps have explanations |

What a store does not know stays empty there: histograms of logits, alignment with neurons, weights of heads.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.files import new_folder
from sae_runtime.core.progress import progress_bar
from sae_runtime.store.open_store import Store
from sae_runtime.store.records import Context, StoredFeature

_UNKNOWN = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_l1"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist", "vector"),
)
BATCH = 128  # features of a file, and at most of an upload
_OURS = re.compile(r"batch-\d+\.json|skipped_indexes\.json|run_settings\.json|explanations\.jsonl")
_LAYER = re.compile(r"(?:^|[._])(\d{1,4})(?=$|[._@])")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where features are at Neuronpedia.

    Attributes:
        model: Neuronpedia's name of the host model, such as gpt2-small.
        layer: number of the layer.
        source_set: name of the SAEs that belong together, such as res-jb.

    >>> Place(model="gpt2-small", layer=6, source_set="res-jb").source
    '6-res-jb'
    """

    model: str
    layer: int
    source_set: str

    @property
    def source(self) -> str:
        """Neuronpedia's name of the SAE."""
        return f"{self.layer}-{self.source_set}"


def find_place(store: Store, model: str | None, layer: int | None, source_set: str | None) -> Place:
    """The place of a store's features; what is not given follows from the store.

    Raises:
        ValueError: it does not follow from the store, or a name has other signs than Neuronpedia's names.

    >>> from sae_runtime import open_store
    >>> find_place(open_store(store_path), "gpt2-small", 6, "res-jb").source
    '6-res-jb'
    """
    of = store.description
    if model is None and not of.model:
        raise ValueError(f"{store.path} does not know its model; name it as Neuronpedia does by --model")
    found = [int(number) for number in _LAYER.findall(of.hook or "")]
    if layer is None and len(found) != 1:
        raise ValueError(f"the layer is not clear from the hook {of.hook!r}; give its number by --layer")
    place = Place(
        model=model if model is not None else str(of.model).rstrip("/").rpartition("/")[2],
        layer=layer if layer is not None else found[0],
        source_set=source_set if source_set is not None else store.path.resolve().name,
    )
    for name, option in ((place.model, "--model"), (place.source_set, "--source-set")):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError(f"a name at Neuronpedia has letters, digits, dots and dashes, got {name!r}; give {option}")
    if place.layer < 0:
        raise ValueError(f"--layer is a number from 0 on, got {place.layer}")
    return place


def write_neuronpedia(
    store: Store, out: str | Path, place: Place, *, dataset: str = "", force: bool = False, progress: bool = False
) -> int:
    """Write the files of a store's features, whole or not at all.

    Args:
        store: the store.
        out: the folder.
        place: where the features are at Neuronpedia.
        dataset: name of the corpus that the pages show.
        force: replace an earlier folder.
        progress: show progress on stderr.

    Returns:
        The number of features with a page.

    Raises:
        OSError: the folder exists, or cannot be written.
        ValueError: the store was altered.

    >>> from sae_runtime import open_store
    >>> place = Place(model="gpt2-small", layer=6, source_set="res-jb")
    >>> write_neuronpedia(open_store(store_path), "pages", place) > 0
    True
    >>> Path("pages/skipped_indexes.json").is_file()
    True
    """
    out = Path(out)
    live = [feature for feature in range(len(store)) if store.count[feature]]
    batch = {"model_id": place.model, "layer": place.layer, "sae_set": place.source_set, "sae_id_suffix": ""}
    with new_folder(out, force=force, foreign=_foreign) as folder:
        with progress_bar(len(live), "features", shown=progress) as bar:
            for number, begin in enumerate(range(0, len(live), BATCH)):
                features = [_page(store, store.feature(one), dataset) for one in live[begin : begin + BATCH]]
                _write(folder / f"batch-{number}.json", batch | {"features": features})
                bar.update(len(features))
        _write(folder / "skipped_indexes.json", _skipped(store, place))
        _write(folder / "run_settings.json", _settings(store, place, out, dataset))
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in _explanations(store, place)]
        (folder / "explanations.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(live)


def tokens_of(context: Context) -> list[str]:
    """The tokens of a context so that they give its text when they are joined, blanks between them too.

    Of several tokens that are bytes of one character, the first has the character.
    """
    if context.text is None or context.offsets is None:
        return context.tokens
    ends = [0]
    for end in context.offsets[:, 1].tolist():
        ends.append(max(end, ends[-1]))
    ends[-1] = len(context.text)
    return [context.text[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)]


def short(value: float) -> float:
    """A float32 with as many digits as it has, for JSON.

    >>> short(0.30000001192092896)
    0.3
    """
    return float(f"{value:.7g}")


def _page(store: Store, one: StoredFeature, dataset: str) -> dict[str, Any]:
    """A feature by the names of SAEDashboard."""
    edges, counts = one.histogram
    together, promoted, suppressed = one.together or [], one.promoted or [], one.suppressed or []
    of = store.description
    return dict.fromkeys(_UNKNOWN, ()) | {
        "feature_index": one.feature,
        "correlated_features_indices": [feature for feature, _ in together],
        "correlated_features_pearson": [short(value) for _, value in together],
        "neg_str": [text for text, _ in suppressed],
        "neg_values": [short(value) for _, value in suppressed],
        "pos_str": [text for text, _ in promoted],
        "pos_values": [short(value) for _, value in promoted],
        "frac_nonzero": one.density,
        "freq_hist_data_bar_values": [short(value) for value in (edges[:-1] + edges[1:]) / 2],
        "freq_hist_data_bar_heights": counts.tolist(),
        "n_prompts_total": of.documents,
        "n_tokens_in_prompt": of.context,
        "dataset": dataset,
        "activations": [_activation(store, one, context) for context in one.contexts],
    }


def _activation(store: Store, one: StoredFeature, context: Context) -> dict[str, Any]:
    """A context. The largest ones stand in a bin of their own, which SAEDashboard marks by -1."""
    band = one.bands[context.band]
    share = -1.0 if context.band == 0 else band.count / max(store.description.tokens, 1)
    return {
        "bin_min": -1.0 if context.band == 0 else short(band.low),
        "bin_max": short(band.high),
        "bin_contains": share,
        "tokens": tokens_of(context),
        "values": [short(value) for value in context.values.tolist()],
        "qualifying_token_index": context.peak,
    }


def _skipped(store: Store, place: Place) -> dict[str, Any]:
    """The features without a page; log_sparsity is the density, as a power of 10, that none of them reached."""
    return {
        "model_id": place.model,
        "layer": str(place.layer),
        "sae_set": place.source_set,
        "log_sparsity": -math.ceil(math.log10(max(store.description.tokens, 1))),
        "skipped_indexes": [feature for feature in range(len(store)) if not store.count[feature]],
    }


def _settings(store: Store, place: Place, out: Path, dataset: str) -> dict[str, Any]:
    of = store.description
    return {
        "sae_set": place.source_set,
        "sae_path": str(store.path),
        "outputs_dir": str(out),
        "np_set_name": place.source_set,
        "from_local_sae": True,
        "huggingface_dataset_path": dataset,
        "n_prompts_total": of.documents,
        "n_tokens_in_prompt": of.context,
        "n_features_at_a_time": BATCH,
        "n_quantiles": of.bands - 1,  # the first band is that of the largest activations
        "top_acts_group_size": of.per_band[0],
        "quantile_group_size": of.per_band[-1],
        "model_id": place.model,
        "layer": place.layer,
    }


def _explanations(store: Store, place: Place) -> Iterator[dict[str, Any]]:
    for feature, label in sorted(store.labels.items()):
        yield {"modelId": place.model, "layer": place.source, "index": str(feature), "description": label}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _foreign(folder: Path) -> str | None:
    return next((entry.name for entry in sorted(folder.iterdir()) if not _OURS.fullmatch(entry.name)), None)
