"""sae-runtime doctor."""

from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command


@click.command("doctor", cls=Command, example="sae-runtime doctor --json")
@common.running("json")
def command(run: Run) -> None:
    """Say what works on this machine.

    Lists versions, onnxruntime's providers, the extras that are installed and whether torch sees a GPU.
    """
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
