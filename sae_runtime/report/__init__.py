"""The report: what bundles achieve, beside each other, in one HTML file."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_runtime.report import page, plots, tables
from sae_runtime.report.tables import Subject
from sae_runtime.train.density import expected_density

__all__ = ["Subject", "read_metrics", "report"]


def report(subjects: Sequence[Subject]) -> str:
    """The page about some bundles, of which there is one at least, evaluated on the same activations."""
    parts = [
        page.paragraph(_what(subjects)),
        tables.identity(subjects),
        page.heading("What they explain"),
        tables.rules(subjects),
        page.columns([_l0(subjects), _densities(subjects)]),
        page.heading("Decoder"),
        tables.decoders(subjects),
        page.columns([_cosines(subjects), _training(subjects)]),
        *_host(subjects),
        page.paragraph(f"Made by sae-runtime {importlib.metadata.version('sae-runtime')}.", dim=True),
    ]
    return page.page("Sparse autoencoders, evaluated", parts)


def read_metrics(path: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The lines that `train --metrics` wrote; where it fitted several SAEs, those of the one called `name`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, a line is no JSON object with numbers `tokens` and `fvu`, or all lines are of
            SAEs of other names.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the metrics {path} are no file; give the file that train --metrics wrote")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = json.loads(text)
            ok = isinstance(line, dict) and all(type(line.get(key)) in (int, float) for key in ("tokens", "fvu"))
        except (ValueError, RecursionError):
            ok = False
        if not ok:
            raise ValueError(f"{path}, line {number}: expected a JSON object with tokens and fvu, as train writes it")
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no line; give the file that train --metrics wrote")
    mine = [line for line in lines if line.get("sae", name) == name]
    if not mine:
        others = ", ".join({str(line["sae"]): None for line in lines})
        raise ValueError(f"{path} is of {others}, not of {name}; give its own, or the bundle the name that it had then")
    return mine


def _what(subjects: Sequence[Subject]) -> str:
    sentences = []
    for kind in ("held-out", "all"):
        here = [subject for subject in subjects if subject.evaluation.rows == kind]
        if not here:
            continue
        evaluation = here[0].evaluation
        seen = "which training never saw" if kind == "held-out" else "which training may have seen"
        names = "" if len(here) == len(subjects) else f" ({', '.join(subject.name for subject in here)})"
        sentences.append(f"Measured on {evaluation.tokens:,} tokens of {evaluation.activations}, {seen}{names}.")
    return " ".join(
        [
            *sentences,
            "Served means that every token is decided for itself, as a deployed encoder does it; the batch rule spends "
            "one budget over many tokens, as training does. Token choice has one rule only.",
        ]
    )


def _l0(subjects: Sequence[Subject]) -> str:
    png = plots.active_features({s.name: np.array(s.evaluation.served.l0_tokens) for s in subjects})
    return page.image(png, "Share of the tokens by their number of active features")


def _densities(subjects: Sequence[Subject]) -> str:
    densities, laws = {}, {}
    for subject in subjects:
        density = torch.tensor(subject.evaluation.served.matches, dtype=torch.float64) / subject.evaluation.tokens
        densities[subject.name] = density.numpy()
        if subject.evaluation.served.zipf is not None:
            laws[subject.name] = expected_density(density).sort(descending=True).values.numpy()
    return page.image(plots.density_by_rank(densities, laws), "Density of each feature by rank, with the Zipf law")


def _cosines(subjects: Sequence[Subject]) -> str:
    png = plots.largest_cosines({s.name: np.array(s.evaluation.decoder.histogram) for s in subjects})
    return page.image(png, "Share of the features by their cosine to the most similar other feature")


def _training(subjects: Sequence[Subject]) -> str:
    curves = {subject.name: subject.metrics for subject in subjects if subject.metrics is not None}
    return page.image(plots.training_curves(curves), "FVU over training") if curves else ""


def _host(subjects: Sequence[Subject]) -> list[str]:
    host = next((subject.host for subject in subjects if subject.host is not None), None)
    if host is None:
        return []
    special = "special tokens included" if host.special else "special tokens left as they are"
    return [
        page.heading("What the model loses"),
        page.paragraph(
            f"{host.model} read {host.tokens:,} tokens of {', '.join(host.text)} in {host.windows:,} windows, with its "
            f"activations at {host.hook} replaced, {special}: by the reconstruction, and, to see how much there is to "
            f"lose, by the mean. The batch rule spent its budget over {host.batch:,.0f} tokens on average."
        ),
        tables.hosts(subjects),
    ]
