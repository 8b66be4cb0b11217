"""The report: one HTML page that compares the evaluations of bundles. It does not need torch."""

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.browser import page, plots, tables
from sae_runtime.browser.tables import Subject
from sae_runtime.bundle.evaluation_file import HostLoss, law_by_rank
from sae_runtime.bundle.typed_json import read_json

__all__ = ["Subject", "read_metrics", "report"]


def report(subjects: Sequence[Subject]) -> str:
    """The HTML page about one bundle or several.

    Raises:
        ValueError: there is no evaluation.

    >>> report([]).startswith("<!doctype html>")
    Traceback (most recent call last):
    ValueError: a report needs at least one evaluation; name a file of sae-runtime evaluate
    """
    if not subjects:
        raise ValueError("a report needs at least one evaluation; name a file of sae-runtime evaluate")
    l0 = plots.active_features({s.name: np.array(s.evaluation.served.l0_tokens) for s in subjects})
    cosines = plots.largest_cosines({s.name: np.array(s.evaluation.decoder.histogram) for s in subjects})
    pictures = [cosines]
    curves = {s.name: s.metrics for s in subjects if s.metrics is not None}
    if curves:
        pictures.append(plots.training_curves(curves))
    parts = [
        page.section("", [page.paragraph(_measured_on(subjects)), tables.identity(subjects)]),
        page.section("What they explain", [tables.rules(subjects), page.columns([l0, _densities(subjects)])]),
        page.section("Decoder", [tables.decoders(subjects), page.columns(pictures)]),
        *_host(subjects),
        page.paragraph(f"Made by sae-runtime {importlib.metadata.version('sae-runtime')}.", dim=True),
    ]
    return page.page("Sparse autoencoders, evaluated", parts)


def read_metrics(path: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The lines of a file of `train --metrics`.

    Args:
        path: the file.
        name: the SAE whose lines are wanted, if one run fitted several SAEs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, a line is no JSON object with numbers `tokens` and `fvu`, or all lines are about
            other SAEs.

    >>> Path("metrics.jsonl").write_text('{"tokens": 2048, "fvu": 0.5}')
    28
    >>> read_metrics(Path("metrics.jsonl"))
    [{'tokens': 2048, 'fvu': 0.5}]
    """
    if not path.is_file():
        raise FileNotFoundError(f"the metrics {path} are no file; give the file that train --metrics wrote")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            line = read_json(dict[str, Any], text, "line")
            line |= {"fvu": math.nan} if line["fvu"] is None else {}  # train writes null where there is no number
            ok = all(type(line[key]) in (int, float) for key in ("tokens", "fvu"))
        except (ValueError, KeyError):
            ok = False
        if not ok:
            raise ValueError(f"{path}, line {number}: expected a JSON object with tokens and fvu, as train writes it")
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no line; give the file that train --metrics wrote")
    named = [line for line in lines if line.get("sae", name) == name]
    if not named:
        others = ", ".join({str(line["sae"]): None for line in lines})
        raise ValueError(
            f"{path} is of {others}, not of {name}; give the metrics of {name}, or the bundle the name that it had then"
        )
    return named


def _measured_on(subjects: Sequence[Subject]) -> str:
    names: dict[tuple[str, int, str, int, float | None], list[str]] = {}
    for subject in subjects:
        measured = subject.evaluation
        rows = (measured.rows, measured.tokens, measured.activations, measured.left_out, measured.max_norm)
        names.setdefault(rows, []).append(subject.name)
    text = ""
    for (kind, tokens, activations, left_out, max_norm), group in names.items():
        seen = "which training never saw" if kind == "held-out" else "which training may have seen"
        about = "" if len(names) == 1 else f" ({', '.join(group)})"
        text += f"Measured on {tokens:,} tokens of {activations}, {seen}{about}. "
        if left_out:
            text += f"{left_out:,} more with over {max_norm:g} times the median norm are left out. "
    return text + (
        "The served rule decides each token for itself, as a deployed encoder does. The batch rule gives matches to "
        "many tokens together, as training does. Token choice has one rule only."
    )


def _densities(subjects: Sequence[Subject]) -> str:
    densities, laws = {}, {}
    for subject in subjects:
        served = subject.evaluation.served
        density = np.array(served.matches, np.float64) / subject.evaluation.tokens
        densities[subject.name] = density
        if served.zipf is not None:
            laws[subject.name] = law_by_rank(served.zipf, density)
    return plots.density_by_rank(densities, laws)


def _all_replaced(group: Sequence[Subject]) -> list[str]:
    """The table of losses where tokens of massive norm are replaced too."""
    replaced = [
        replace(subject, evaluation=replace(subject.evaluation, host=subject.evaluation.host.with_left_out))
        for subject in group
        if subject.evaluation.host is not None and subject.evaluation.host.with_left_out is not None
    ]
    return [page.paragraph("With the tokens of massive norm replaced too:"), tables.hosts(replaced)] if replaced else []


def _host(subjects: Sequence[Subject]) -> list[str]:
    """A section for each text that host models read; its sentence has the measurements of the first SAE."""
    groups: dict[tuple[object, ...], tuple[HostLoss, list[Subject]]] = {}
    for subject in subjects:
        host = subject.evaluation.host
        if host is not None:
            key = (host.model, host.hook, host.text, host.tokens, host.windows, host.special)
            groups.setdefault(key, (host, []))[1].append(subject)
    parts: list[str] = []
    for host, group in groups.values():
        kept = f" {host.left_out:,} tokens of massive norm kept their own activation." if host.left_out else ""
        special = "special tokens included" if host.special else "special tokens left as they are"
        measured = (
            f"{host.model} read {host.tokens:,} tokens of {', '.join(host.text)} in {host.windows:,} windows, with "
            f"its activations at {host.hook} replaced, {special}: by the reconstruction, and by ablations, which "
            f"show how much there is to lose. The batch rule ran over {host.batch:,.0f} tokens on average.{kept}"
        )
        tabled = [page.paragraph(measured), tables.hosts(group), *_all_replaced(group)]
        parts.append(page.section("What the model loses", tabled))
    return parts
