"""Options that several commands share, and how they print."""

from collections.abc import Callable, Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

import click

from sae_runtime.bundle.outputs import refuse_inputs

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)  # what is wrong with a path, its reader says best

bundle_argument = click.argument("bundle", type=PATH)
activations_option = click.option(
    "--activations", type=PATH, required=True, help="folder of harvest, .npy or .safetensors of shape [n, d_in]"
)
force_option = click.option("--force", is_flag=True, help="replace what stands at the output already")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="no progress bar")
json_option = click.option("--json", is_flag=True, help="print JSON")
any_source_option = click.option(
    "--any-source", is_flag=True, help="take activations of another model or hook than the bundle's"
)


def output_option(help: str, **settings: Any) -> Callable[[F], F]:
    """The option -o/--output: a path, required unless the settings give a default."""
    return click.option("-o", "--output", type=PATH, required="default" not in settings, help=help, **settings)


def session_options(function: F) -> F:
    """Decorator that adds --provider and --threads, for `sae_runtime.load`."""
    function = click.option("--threads", type=click.INT, help="threads of an operator (default: all cores)")(function)
    return click.option(
        "--provider",
        multiple=True,
        default=("CPUExecutionProvider",),
        help="onnxruntime execution provider, the preferred one first",
    )(function)


def refuse_same(output: Path, **inputs: Path) -> None:
    """Raise ValueError if the output is an input, holds one, or lies in one."""
    refuse_inputs(output, inputs)


def show(result: Mapping[str, Any], lines: Sequence[tuple[str, object]], *, json: bool) -> None:
    """Print a result to stdout: as one JSON object, or as lines of label and text; an empty label goes on."""
    if json:
        click.echo(dumps(result, indent=2, allow_nan=False, default=str))
        return
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        click.echo(f"{label:<{width}}  {text}".rstrip())


def plural(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines with aligned columns; the second is flush right, being a size."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if i == 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def explained(fvu: float | None) -> str:
    """The beginning of a line on what an SAE explains; empty where that is not known.

    >>> explained(0.25)
    'FVU 0.2500, explained variance 0.7500, '
    """
    return "" if fvu is None else f"FVU {fvu:.4f}, explained variance {1 - fvu:.4f}, "
