"""The model of a site: the spliced graph as a page runs it, its tokenizer, and model.json, which describes both."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_runtime.browser.site.model_facts import host_facts, read_and_edited, text_facts, vector_facts
from sae_runtime.browser.site.page_runs import PageRuns, agreement
from sae_runtime.browser.site.page_tokenizer import tokenizer_facts
from sae_runtime.browser.site.unfit import UnfitForPage
from sae_runtime.bundle.external_data import check_external
from sae_runtime.model import Model

LARGE, LARGEST = 500_000_000, 1_500_000_000
"""Bytes to load above which a model is left out unless it is asked for, and above which no page loads it."""

WriteGraph = Callable[..., Any]
"""`sae_runtime.exports.page_graph.write_page_graph`, which a caller gives: the browser itself needs no onnx."""


def write_model_part(
    model: Model,
    folder: Path,
    *,
    write_graph: WriteGraph,
    saes: Mapping[str, str],
    sentences: Sequence[str],
    int8: bool = False,
    large: bool = False,
) -> dict[str, Any]:
    """Write what a page needs to run a model, and give the object of model.json, which is among it.

    Args:
        model: a deployed model.
        folder: `model/` of a site; it is made.
        write_graph: writes the graph for a page.
        saes: the name of the site's SAE by the sha256 of its weights.
        sentences: texts of the corpus, for examples and to measure what int8 changes.
        int8: keep the host's weights in eight bits.
        large: write a model that is larger than a page loads at ease.

    Returns:
        The object of model.json. Where its "problem" is no null, the page cannot run the model, and the folder has
        model.json alone; the page then asks `sae-runtime serve` at the same address.

    Raises:
        ValueError: `int8` is asked for and the host has no float32 weights.

    >>> from sae_runtime import load_model
    >>> from sae_runtime.exports.page_graph import write_page_graph
    >>> model = load_model(model_path)
    >>> told = write_model_part(model, Path("site/model"), write_graph=write_page_graph, saes={}, sentences=["w1 w2"])
    >>> told["kind"], told["weights"], told["problem"], told["inputs"]["ids"]
    ('vectors', 'float32', None, {'name': 'input_ids', 'type': 'int64'})
    """
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {
        "name": model.layout.graph.absolute().parent.name,
        "kind": "other",
        "problem": _too_large(sum(_sizes(model)), LARGEST * (4 if int8 else 1), large=True),
        "notes": [],
        "graph": None,
        "bytes": 0,
        "external": [],
        "weights": None,
        "agreement": None,
        "tokenizer": None,
        "limit": None,
        "lower_case": False,
        "special": None,
        "inputs": None,
        "saes": read_and_edited(model, saes),
        "vectors": None,
        "text": None,
        "sentences": list(sentences),
    }
    if told["problem"] is None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = _fill(told, model, Path(scratch), write_graph, int8=int8, large=large)
            for file in files if told["problem"] is None else ():
                shutil.move(file, folder / file.name)
    (folder / "model.json").write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    return told


def _fill(
    told: dict[str, Any], model: Model, scratch: Path, write_graph: WriteGraph, *, int8: bool, large: bool
) -> list[Path]:
    """Write the files of a model, and put what is known of them into model.json's object, or why no page runs it."""
    try:
        tokenizer = tokenizer_facts(model)
        made = write_graph(model.layout.graph, scratch, int8=int8)
        runs = PageRuns(made.graph, model)
        told |= host_facts(runs)
    except UnfitForPage as error:
        told["problem"] = str(error)
        return []
    (scratch / "tokenizer.json").write_text(model.tokenizer.to_json())
    files = [made.graph, *made.external, scratch / "tokenizer.json"]
    size = sum(file.stat().st_size for file in files)
    told |= {"problem": _too_large(size, LARGE, large=large) or _too_large(size, LARGEST, large=True), "bytes": size}
    if told["problem"] is not None:
        return []
    told |= {"graph": made.graph.name, "weights": made.weights, "tokenizer": "tokenizer.json", **tokenizer}
    told["external"] = [{"path": f.name, "file": f.name, "bytes": f.stat().st_size} for f in made.external]
    kind, part, notes = "other", None, [*model.layout.notes]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            kind = model.kind
            part = {"vectors": vector_facts, "text": text_facts}[kind](model) if kind != "other" else None
        except ValueError as error:  # features are read all the same
            kind = "other"
            notes.append(str(error))
        notes += [str(warning.message) for warning in said]
    told |= {"kind": kind, "notes": notes, **({} if part is None else {kind: part})}
    told["lower_case"] = bool(model.layout.sentence and model.layout.sentence.lower_case)
    if made.weights not in ("float32", "float64"):
        told["agreement"] = agreement(model, runs, told, told["sentences"])
    return files


def _sizes(model: Model) -> list[int]:
    graph = model.layout.graph
    return [file.stat().st_size for file in (graph, *check_external(graph))]


def _too_large(size: int, most: int, *, large: bool) -> str | None:
    if size <= most or (large and most < LARGEST):
        return None
    told = f"the model has {size / 1e6:,.0f} MB to load, "
    if most >= LARGEST:
        return f"{told}more than a page holds; run it by sae-runtime serve, which serves this site too"
    return (
        f"{told}too many for most readers, so it is not in this site; run it by sae-runtime serve, or put it in: "
        "sae-runtime browse --in-page"
    )
