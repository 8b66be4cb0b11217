"""sae-runtime doctor."""

import re
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command

_TEXT = "Open the file and read its first line."


@click.command("doctor", cls=Command, example="sae-runtime doctor model/host_sae.onnx")
@click.argument("model", required=False)
@common.running("json")
def command(model: str | None, run: Run) -> None:
    """Say what works on this machine, or whether a spliced MODEL works.

    Without MODEL, it lists versions, onnxruntime's providers, the extras that are installed and whether torch sees a
    GPU. MODEL is a folder, a graph, .onnx, or hf://owner/name: the weights of its SAEs are compared with those that
    were put in, and it is run on made-up inputs, its part that gives features too. Then features, embed and generate
    are tried on a text. A model that does not run here gives exit code 1.
    """
    if model is not None:
        from sae_runtime.deployed.layout import read_layout
        from sae_runtime.engine.model_report import model_report

        layout = read_layout(model)
        checked = model_report(layout.graph, layout.features)
        checked["warnings"] += layout.notes
        checked |= {"features": layout.features, "does": _tried(layout.graph)}
        run.show(checked, _model_lines(checked))
        return
    from sae_runtime.engine import doctor

    made = doctor.report()
    run.show(made, _lines(made))


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    providers, cuda = report["providers"], report["cuda"]
    lines = [
        ("python", f"{report['python']} on {report['platform']}, {report['cpus']} CPUs"),
        ("providers", ", ".join(providers) if providers is not None else "none, onnxruntime does not load"),
        ("torch", "does not load" if cuda is None else "sees a CUDA device" if cuda else "sees no CUDA device"),
    ]
    for name, missing in report["extras"].items():
        lines.append((f"[{name}]", f"lacks {', '.join(missing)}" if missing else "works"))
    for name, version in report["versions"].items():
        lines.append((name, version or "not installed"))
    return lines + [("warning", text) for text in report["warnings"]]


def _model_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("graph", report["graph"])]
    gives = {re.sub(r"\.\d+\.", ".N.", name): shape for name, shape in report["outputs"].items()}  # keys of all layers
    lines += [("gives", f"{name} {shape}") for name, shape in gives.items()]
    for name, one in report["splices"].items():
        does = [] if one["l0"] is None else [f"reads {one['l0']:.1f} features of a made-up token"]
        does += [] if one["moved"] is None else ["edits move the outputs" if one["moved"] else "edits move no output"]
        lines.append((name, ", ".join([f"weights ok at {one['hook']}", *does])))
    if report["features"] is not None:
        lines.append(("part", f"{report['features'].name} gives the features"))
    lines += [(name, fault or "works") for name, fault in report["does"].items()]
    return lines + [("warning", text) for text in report["warnings"]]


def _tried(graph: Path) -> dict[str, str | None]:
    """What `load_model` and its methods do with a text: None, or the sentence with which they refuse."""
    from sae_runtime.model import load_model

    faults: dict[str, str | None] = {}
    model: Any = None
    for name in ("load_model", "features", "embed", "generate"):
        try:
            if name == "load_model":
                model = load_model(graph)
            elif name == "generate":
                list(model.generate(_TEXT, max_new_tokens=2))
            else:
                getattr(model, name)(_TEXT)
            faults[name] = None
        except (OSError, ValueError, ImportError, MemoryError) as error:
            faults[name] = " ".join(str(error).split())
            if name == "load_model":
                break
    return faults
