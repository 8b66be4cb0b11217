"""sae-runtime doctor."""

from typing import Any

import click

from sae_runtime.cli.common import json_option, show
from sae_runtime.cli.options import Command
from sae_runtime.engine.doctor import report


@click.command("doctor", cls=Command)
@json_option
def command(json: bool) -> None:
    """Say what works on this machine.

    Lists versions, onnxruntime's providers, the extras that are installed and whether torch sees a GPU.
    """
    made = report()
    show(made, _lines(made), json=json)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    providers, cuda = found["providers"], found["cuda"]
    lines = [
        ("python", f"{found['python']} on {found['platform']}, {found['cpus']} CPUs"),
        ("providers", ", ".join(providers) if providers is not None else "none, onnxruntime does not load"),
        ("torch", "does not load" if cuda is None else "sees a CUDA device" if cuda else "sees no CUDA device"),
    ]
    for name, missing in found["extras"].items():
        lines.append((f"[{name}]", f"lacks {', '.join(missing)}" if missing else "works"))
    for name, version in found["versions"].items():
        lines.append((name, version or "not installed"))
    return lines + [("warning", text) for text in found["warnings"]]
