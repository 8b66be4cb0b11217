"""sae-runtime inspect, and how a bundle and a splice are described."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command
from sae_runtime.core.columns import aligned

if TYPE_CHECKING:
    from sae_runtime.bundle.folder import Bundle
    from sae_runtime.bundle.manifest import GraphRecord, Manifest
    from sae_runtime.bundle.splices import Spliced


@click.command("inspect", cls=Command, example="sae-runtime inspect sae")
@common.bundle
@click.option("--check", is_flag=True, help="Run every graph, and compare with numpy what it computes.")
@common.running("json")
def command(bundle: str, check: bool, run: Run) -> None:
    """Check a bundle or a deployed model and say what it is.

    BUNDLE is a folder, hf://owner/name[/folder][@revision], or a graph, .onnx. Every file and graph is compared with
    the sha256 in the manifest, and the weights of a model's SAEs with those that were put in. A graph of a bundle must
    be one that sae-runtime writes for these weights. With --check, all graphs also run on the bundle's sample. A bundle
    or graph that is not valid, or that computes something else than its weights say, gives exit code 1.
    """
    if _is_model(bundle):
        if check:
            raise click.UsageError("--check compares the graphs of a bundle; sae-runtime doctor runs a spliced graph")
        _inspect_model(bundle, run)
        return
    from sae_runtime.bundle import folder
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.labels import read_labels

    try:
        read = folder.read(local(bundle), calibrated=False)
        for name in read.manifest.graphs:
            read.graph(name)
        labels = read_labels(read.path, read.manifest.architecture.d_sae)
        faults = _faults(read) if check else {}
    except (OSError, ValueError) as error:
        if run.json:
            run.show({"valid": False, "bundle": bundle, "error": str(error)}, [])
        raise
    manifest = read.manifest
    wrong = [f"{name}: {fault}" for name, fault in faults.items() if fault is not None]
    result = {"valid": not wrong, "bundle": bundle, **dataclasses.asdict(manifest), "labels": len(labels)}
    result["card"] = _card(read.path)
    if check:
        result["check"] = faults
    sizes = [[name, f"{record.size:,} bytes", "sha256 ok"] for name, record in manifest.files.items()]
    files = aligned(sizes, right=[1])
    checked = "sha256 of every file, form of every graph" + (
        "; all compute what the weights say" if check else "; not what they compute: add --check"
    )
    lines = [("bundle", bundle), ("wrong", "; ".join(wrong)) if wrong else ("valid", checked), *describe(manifest)]
    if (stats := read.stats()) is not None:
        lines.append(("stats", f"density and largest activation of each feature, on {stats.tokens:,} tokens"))
    if read.logits() is not None:
        lines.append(("logits", logits_line(None)))
    if labels:
        lines.append(("labels", f"of {len(labels):,} features"))
    if result["card"] is not None:
        lines.append(("card", f"README.md, {result['card']}"))
    lines += _listed("files", files)
    then = common.shell_command("export" if read.calibrated else "calibrate", bundle)
    run.show(result, lines + (graph_lines(manifest.graphs) or [("graphs", f"none yet; run: {then}")]))
    if wrong:
        raise ValueError(
            f"{bundle} computes something else than its weights say ({wrong[0]}); load it with rebuild=True, or run: "
            + then
        )


def _card(folder: Path) -> str | None:
    """Who the model card of a bundle is from; None where there is none."""
    from sae_runtime.bundle.sealed import CARD, may_write

    if not (folder / CARD).is_file():
        return None
    return "as sae-runtime wrote it" if may_write(folder) else "edited"


def _faults(bundle: "Bundle") -> dict[str, str | None]:
    from sae_runtime.exports.check import faults

    return faults(bundle)


def _is_model(reference: str) -> bool:
    """Whether a path or a reference to the Hub means a model, with or without SAEs in it, and not a bundle."""
    from sae_runtime.bundle.folder import MANIFEST
    from sae_runtime.bundle.hub import SCHEME, download, parsed
    from sae_runtime.bundle.model_files import TOKENIZER

    if reference.endswith(".onnx"):
        return True
    if not reference.startswith(SCHEME):
        path = Path(reference)
        return not (path / MANIFEST).exists() and any((*path.glob("[!.]*.onnx"), *path.glob("onnx/[!.]*.onnx")))
    repository, inside, revision = parsed(reference)
    if inside.endswith(".onnx"):  # a revision stands behind it
        return True
    of_model = (TOKENIZER, "tokenizer_config.json")
    names = [f"{inside}/{name}".lstrip("/") for name in (MANIFEST, *of_model)]
    home = download(reference, repository, revision, names, []) / inside
    return any((home / name).is_file() for name in of_model) and not (home / MANIFEST).is_file()


def _inspect_model(reference: str, run: Run) -> None:
    """Say what a deployed model is, which SAEs are in its graph, and whether its weights are theirs."""
    from sae_runtime.bundle.external_data import check_external
    from sae_runtime.bundle.splices import check_weights
    from sae_runtime.deployed.description import described
    from sae_runtime.deployed.layout import read_layout

    try:
        layout = read_layout(reference)
        found = described(layout)
    except (OSError, ValueError) as error:
        if run.json:
            run.show({"valid": False, "graph": reference, "error": str(error)}, [])
        raise
    length = f", texts of up to {found.max_length:,} tokens" if found.max_length else ""
    lines: list[tuple[str, object]] = [("graph", layout.graph), ("kind", found.kind)]
    lines.append(("tokenizer", f"{found.tokenizer}{length}" if found.tokenizer else "none"))
    problems: list[Exception] = []
    for name, spliced in layout.splices.items():
        state = "sha256 ok"
        try:
            check_weights(layout.graph, spliced)
        except (OSError, ValueError) as error:
            problems.append(error)
            state = "missing" if isinstance(error, OSError) else "changed since the splice"
        lines += [*describe_splice(spliced), ("weights", f"{spliced.file}  {state}" if spliced.file else "unknown")]
        if name in layout.bundles:
            lines.append(("bundle", f"{layout.bundles[name]}, labels of {found.labels[name]:,} features"))
            lines.append(("logits", logits_line(_why_no_logits(layout.bundles[name], spliced.d_sae))))
    try:
        for graph in filter(None, (layout.graph, layout.features)):
            check_external(graph)
    except (OSError, ValueError) as error:
        problems.append(error)
    lines += [] if layout.splices else [("splices", "none")]
    if layout.splices:
        lines.append(("features", f"{layout.features.name}, cut of this graph" if layout.features else "no cut graph"))
    lines += [("note", note) for note in layout.notes]
    result = {
        "valid": not problems,
        "graph": layout.graph,
        **dataclasses.asdict(found),
        "splices": [dataclasses.asdict(one) for one in layout.splices.values()],
        "bundles": dict(layout.bundles),
        "features": layout.features,
        "sentence": layout.sentence and dataclasses.asdict(layout.sentence),
        "notes": layout.notes,
    }
    run.show(result | ({"error": str(problems[0])} if problems else {}), lines)
    if problems:
        raise problems[0]


def _why_no_logits(folder: Path, d_sae: int) -> str | None:
    """Why the bundle of a deployed model does not know the tokens that its features promote; None if it does."""
    from sae_runtime.bundle.parts import STATS
    from sae_runtime.bundle.token_logits import read_logits

    try:
        known = (folder / STATS).is_file() and read_logits(folder / STATS, d_sae) is not None
    except (OSError, ValueError) as error:
        return str(error)
    return None if known else "splice found no float head behind the place, or was not asked to"


def logits_line(why_not: str | None) -> str:
    """What is known of the tokens whose logits features raise and lower most.

    Args:
        why_not: why nothing is known; None: something is.

    >>> logits_line("the host has no head")
    'none: the host has no head'
    """
    known = "the tokens that each feature promotes and suppresses most, directly"
    return known if why_not is None else f"none: {why_not}"


def describe_splice(spliced: "Spliced") -> list[tuple[str, object]]:
    """Lines for `Run.show` on an SAE in a graph."""
    lines: list[tuple[str, object]] = [
        (spliced.name, f"{spliced.d_sae:,} features of {spliced.hook}, tensor {spliced.tensor}")
    ]
    lines += [("inputs", ", ".join(spliced.inputs))] if spliced.inputs else []
    return lines + ([("outputs", ", ".join(spliced.outputs))] if spliced.outputs else [])


def describe(manifest: "Manifest") -> list[tuple[str, str]]:
    """Lines for `Run.show` on an SAE and its measurements."""
    architecture, allocation = manifest.architecture, manifest.allocation
    kept = {
        "topk": f"the top {architecture.k} of every token",
        "groupmax": f"the largest of each of {architecture.k} groups",
        "threshold": "those above their threshold",
    }[architecture.selection]
    form = f"{architecture.d_in:,} wide, {architecture.d_sae:,} features, keeps {kept}"
    form += {
        "none": "",
        "layer": ", of activations with mean 0 and deviation 1",
        "length": ", of activations of one length",
    }[architecture.norm]
    if architecture.d_out is not None:
        form += f"; transcodes to {manifest.hook_out or 'another activation'}, {architecture.d_out:,} wide"
    form += ", with a linear skip" * architecture.skip
    lines = [("source", ", ".join(filter(None, (manifest.model, manifest.hook))) or "unknown"), ("architecture", form)]
    lines += [*fitted_on(manifest), *_listed("warned", manifest.told("warnings", list))]
    if allocation is not None:
        text = f"{allocation.kind} choice, k {allocation.k:g}"
        if allocation.quota is not None:
            text += "".join(f", {name} {value:.4g}" for name, value in dataclasses.asdict(allocation.quota).items())
        lines.append(("allocation", text))
    for rows in (manifest.told("rows", dict), manifest.told("calibration", dict).get("rows")):
        if text := row_line(rows):
            lines.append(("rows", text))
    tokens = "tokens" if "calibration" in manifest.provenance else "held-out tokens"  # others may have trained on them
    lines += _listed("measured", list(_measurements(manifest.measured, tokens)))
    return lines + common.with_left_out(manifest.measured_with_left_out) + _left_out(manifest)


def _left_out(manifest: "Manifest") -> list[tuple[str, str]]:
    """Lines on the rows that training, calibration and the figures leave out."""
    rule = manifest.left_out
    if rule is None:
        return []
    rows = (manifest.told("calibration", dict) or manifest.provenance).get("rows")
    counts: dict[str, int] = rows if isinstance(rows, dict) else {}
    parts = [part for part in rule.rows if _is_count(counts.get(part)) and _is_count(rule.rows[part])]
    left_out, kept = (sum(rows[part] for part in parts) for rows in (rule.rows, counts))
    texts = [text for _, text in common.left_out(left_out, kept, rule.norm_multiple)]
    return _listed("left out", texts + common.skipped(rule.first_positions, rule.token_ids))


def row_line(rows: object) -> str:
    """How many rows each part has, from a manifest's provenance; "" where the manifest does not say.

    >>> row_line({"train": 9000, "calibration": 500, "validation": 500, "gaps": 0})
    'trained on 9,000, calibrated on 500, measured on 500, in gaps between them 0'
    """
    names = {
        "train": "trained on",
        "calibration": "calibrated on",
        "validation": "measured on",
        "gaps": "in gaps between them",
    }
    if not isinstance(rows, dict):
        return ""
    return ", ".join(f"{text} {rows[name]:,}" for name, text in names.items() if _is_count(rows.get(name)))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def fitted_on(manifest: "Manifest") -> list[tuple[str, str]]:
    """A line for `Run.show` on the activations that a converted SAE was fitted on, if its checkpoint tells."""
    recorded = manifest.told("fitted_on", dict)
    text = ", ".join(f"{name} {json.dumps(value, ensure_ascii=True)}" for name, value in recorded.items())
    return [("fitted on", text)] if text else []


def _measurements(measured: Mapping[str, float], tokens: str) -> Iterator[str]:
    if {"l0", "tokens"} <= measured.keys():
        served = f"{common.explained(measured.get('fvu'))}L0 {measured['l0']:.2f}"
        yield f"as served: {served} on {measured['tokens']:,.0f} {tokens}"
    if {"batch_fvu", "batch_l0", "batch"} <= measured.keys():
        by_batch = f"{common.explained(measured['batch_fvu'])}L0 {measured['batch_l0']:.2f}"
        yield f"batch rule: {by_batch} over batches of {measured['batch']:,.0f}"
    if {"dead", "dead_tokens"} <= measured.keys():
        yield f"dead on {measured['dead_tokens']:,.0f} tokens: {measured['dead']:.2%} of the features"


def graph_lines(graphs: "Mapping[str, GraphRecord]") -> list[tuple[str, str]]:
    """Lines for `Run.show` on the sizes of graphs, and on whether a server may batch requests."""
    rows = [
        [name, f"{record.size:,} bytes", "row-independent" if record.row_independent else "over the whole batch"]
        for name, record in graphs.items()
    ]
    return _listed("graphs", aligned(rows, right=[1])) if rows else []


def _listed(label: str, texts: list[Any]) -> list[tuple[str, str]]:
    return [("" if number else label, str(text)) for number, text in enumerate(texts)]
