"""sae-runtime inspect, and how a bundle is described."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from sae_runtime import bundle as bundles
from sae_runtime import tuned
from sae_runtime.bundle import Bundle, BundleError
from sae_runtime.cli.common import bundle_argument, json_option, show, table
from sae_runtime.cli.options import Command
from sae_runtime.encoder import exact_graphs
from sae_runtime.manifest import GraphRecord, Manifest
from sae_runtime.sessions import CPU, Sessions


@click.command("inspect", cls=Command)
@bundle_argument
@json_option
def command(bundle: Path, json: bool) -> None:
    """Check a bundle and say what it is.

    Every file and graph is compared with the sha256 in the manifest. A bundle that is not valid gives exit code 1.
    """
    try:
        read = bundles.read(bundle, calibrated=False)
        for name in read.manifest.graphs:
            read.graph(name)
    except BundleError as error:
        if json:
            show({"valid": False, "bundle": bundle, "error": str(error)}, [], json=True)
        raise
    manifest = read.manifest
    quicker = tuned.find(manifest, Sessions(read, providers=CPU, threads=None, verify=False).workers)
    result = {"valid": True, "bundle": bundle, **dataclasses.asdict(manifest), "tuned": quicker}
    files = table([[name, f"{record.size:,} bytes", "sha256 ok"] for name, record in manifest.files.items()])
    lines = [("bundle", f"{bundle} (valid)"), *describe(manifest), *_listed("files", files)]
    todo = "export" if read.calibrated else "calibrate"
    lines += graph_lines(manifest.graphs) or [("graphs", f"none yet; run: sae-runtime {todo} {bundle}")]
    show(result, lines + _tuned_line(read, quicker), json=json)


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """What an SAE is and what it measured, as lines for `show`."""
    encoder, allocation = manifest.encoder, manifest.allocation
    kept = {
        "topk": f"the top {encoder.k} of every token",
        "groupmax": f"the largest of each of {encoder.k} groups",
        "threshold": "those above their threshold",
    }[encoder.selection]
    form = f"{encoder.d_in:,} wide, {encoder.d_sae:,} features, keeps {kept}"
    form += {
        "none": "",
        "layer": ", of activations with mean 0 and deviation 1",
        "length": ", of activations of one length",
    }[encoder.norm]
    if encoder.d_out is not None:
        skip = " and a linear skip" if encoder.skip else ""
        form += f"; transcodes to {manifest.hook_out or 'another activation'}, {encoder.d_out:,} wide{skip}"
    lines = [("source", ", ".join(filter(None, (manifest.model, manifest.hook))) or "unknown"), ("encoder", form)]
    if allocation is not None:
        budget = f"{allocation.kind} choice, k {allocation.k:g}"
        if allocation.quota is not None:
            budget += "".join(f", {name} {value:.4g}" for name, value in dataclasses.asdict(allocation.quota).items())
        lines.append(("allocation", budget))
    tokens = "tokens" if "calibration" in manifest.provenance else "held-out tokens"  # others may have trained on them
    return lines + _listed("measured", list(_measurements(manifest.measured, tokens)))


def _measurements(measured: Mapping[str, float], tokens: str) -> Iterator[str]:
    if "fvu" in measured:
        yield f"as served: FVU {measured['fvu']:.4f}, L0 {measured['l0']:.2f} on {measured['tokens']:,.0f} {tokens}"
    if "batch_fvu" in measured:
        batch = f"over batches of {measured['batch']:,.0f}"
        yield f"batch rule: FVU {measured['batch_fvu']:.4f}, L0 {measured['batch_l0']:.2f} {batch}"
    if "dead" in measured:
        yield f"silent on {measured['dead_tokens']:,.0f} tokens: {measured['dead']:.2%} of the features"


def graph_lines(graphs: Mapping[str, GraphRecord]) -> list[tuple[str, str]]:
    """Graphs with their sizes, and whether a server may batch requests, as lines for `show`."""
    rows = [
        [name, f"{record.size:,} bytes", "row-independent" if record.row_independent else "over the whole batch"]
        for name, record in graphs.items()
    ]
    return _listed("graphs", table(rows)) if rows else []


def _tuned_line(bundle: Bundle, quicker: str | None) -> list[tuple[str, str]]:
    """Which graph gives precision "exact" here, where there are two."""
    if len(exact_graphs(bundle.manifest)) < 2:
        return []
    untuned = f"by size, not timed on this machine; run: sae-runtime tune {bundle.path}"
    return [("exact", f"{quicker}, the quicker one on this machine" if quicker else untuned)]


def _listed(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if number == 0 else "", text) for number, text in enumerate(texts)]
