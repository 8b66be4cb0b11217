"""Options that several commands share, and how they print."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

import click

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.bundle.typed_json import to_text
from sae_runtime.cli.options import WHOLE, Decorator, gathered
from sae_runtime.core.printable import printable

_DEEPEST = 255  # folders inside one another
_PROVIDERS = ("CPU", "CUDA", "Tensorrt", "OpenVINO", "CoreML", "Dml", "ROCM", "MIGraphX", "QNN", "WebGpu", "Xnnpack")


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if len(Path(value).parts) > _DEEPEST:  # Python makes them by a recursion
            self.fail(f"it has more than {_DEEPEST} folders inside one another; name another path.", param, ctx)
        return super().convert(value, param, ctx)


class _Output(_Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) == "-":
            self.fail("- would be standard output, which is not written to; name a path.", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)  # the reader of a path says best what is wrong with it
OUTPUT = _Output(path_type=Path)

bundle = click.argument("bundle")
ACTIVATIONS = "folder of harvest, or .npy, .npz, .safetensors or .pt of shape [n, d_in], or a folder of these"
activations = click.option("--activations", type=PATH, required=True, help=ACTIVATIONS)
any_source = click.option(
    "--any-source", is_flag=True, help="take activations of another model or hook than the bundle's"
)


def output(help: str, **settings: Any) -> Decorator[Any]:
    """The option -o/--output: a path, required unless the settings say otherwise."""
    return click.option("-o", "--output", type=OUTPUT, help=help, **{"required": "default" not in settings, **settings})


def own_bundle(folder: Path, meant: str = ";") -> Path:
    """A folder that may be a bundle; a deployed model is refused by the name of the bundle in it."""
    from sae_runtime.bundle.parts import MANIFEST

    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if inside and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is a deployed model{meant} name its bundle, {' or '.join(map(str, inside[:5]))}")
    return folder


def providers_of(names: Sequence[str]) -> list[str]:
    """The full names of execution providers.

    >>> providers_of(["cuda", "CPUExecutionProvider"])
    ['CUDAExecutionProvider', 'CPUExecutionProvider']
    """
    full = {short.lower(): f"{short}ExecutionProvider" for short in _PROVIDERS}
    return [full.get(name.lower(), name) for name in names]


def _session(provider: Sequence[str], threads: int | None) -> dict[str, Any]:
    return {"providers": providers_of(provider), "threads": threads}


session = gathered(
    "session",
    _session,
    {
        "provider": click.option(
            "--provider",
            multiple=True,
            default=("cpu",),
            help="execution provider of onnxruntime: cpu, cuda, ... or its full name; may be repeated, the preferred "
            "one first",
        ),
        "threads": click.option("--threads", type=WHOLE, help="threads of an operator [all cores]"),
    },
)
"""Gives a command --provider and --threads, as keyword arguments of `sae_runtime.load`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every command can be told about its output. A command has the options that `running` names."""

    json: bool = False
    force: bool = False
    quiet: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The same for a function that works."""
        return {"force": self.force, "progress": not self.quiet}

    def show(self, result: Mapping[str, Any], lines: Sequence[tuple[str, object]]) -> None:
        """Print a result to stdout: as JSON, or as lines of label and text; an empty label continues the one above."""
        with naming("standard output"):
            if self.json:
                click.echo(to_text(result, indent=2, other=str))
                return
            width = max(len(label) for label, _ in lines)
            for label, text in lines:
                click.echo(printable(f"{label:<{width}}  {text}".rstrip()))


_RUNNING = {
    "force": click.option("--force", is_flag=True, help="replace the output, if it is what this command writes"),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="show no progress"),
    "json": click.option("--json", is_flag=True, help="print JSON"),
}


def running(*names: str) -> Decorator[Any]:
    """Decorator that gives a command some of --force, --quiet and --json, and hands it a `Run` of them."""
    return gathered("run", Run, {name: _RUNNING[name] for name in names})


def warn(warning: object) -> None:
    """Print a warning as one line on stderr."""
    click.echo(printable(f"warning: {warning}"), err=True)


@contextmanager
def resumable(path: Path, how: str) -> Iterator[None]:
    """Let an interrupt of the block name what it leaves at `path`, and how to go on from there."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{path} is kept; {how}" if path.exists() else "") from None


def shell_command(*words: str | Path) -> str:
    """A call of sae-runtime, quoted for a shell.

    >>> shell_command("export", Path("my sae"))
    "sae-runtime export 'my sae'"
    """
    return join(["sae-runtime", *map(str, words)])


def plural(number: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "token"), plural(2000, "match")
    ('1 token', '2,000 matches')
    """
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"


def left_out(rows: int, kept: int, max_norm: float | None) -> list[tuple[str, str]]:
    """The line on rows of massive norm; none where there are no such rows.

    >>> left_out(312, 19_188, 10.0)
    [('left out', '312 rows (1.6 %) with more than 10 times the median norm')]
    """
    if not rows or max_norm is None:
        return []
    share = 100 * rows / (rows + kept)
    return [("left out", f"{plural(rows, 'row')} ({share:.2g} %) with more than {max_norm:g} times the median norm")]


def skipped(first_positions: int, tokens: Sequence[int | str]) -> list[str]:
    """What a harvest does not keep, a text for each of its options.

    >>> skipped(1, ["<|im_start|>", 7])
    ['the first position of each window', 'the tokens <|im_start|>, 7']
    """
    first = "position" if first_positions == 1 else f"{first_positions:,} positions"
    texts = [f"the first {first} of each window"] if first_positions else []
    return texts + ([f"the tokens {', '.join(map(str, tokens))}"] if tokens else [])


def with_left_out(measured: Mapping[str, float]) -> list[tuple[str, str]]:
    """The line on figures over all rows, those of massive norm too; none where the manifest has no such figures.

    >>> with_left_out({"tokens": 500, "fvu": 0.25, "l0": 4.0})
    [('', 'with those left out: FVU 0.2500, explained variance 0.7500, L0 4.00 on 500 tokens')]
    """
    if not {"l0", "tokens"} <= measured.keys():
        return []
    figures = f"{explained(measured.get('fvu'))}L0 {measured['l0']:.2f}"
    return [("", f"with those left out: {figures} on {measured['tokens']:,.0f} tokens")]


def explained(fvu: float | None) -> str:
    """The beginning of a line on what an SAE explains; empty where that is not known.

    >>> explained(0.25)
    'FVU 0.2500, explained variance 0.7500, '
    """
    return "" if fvu is None else f"FVU {fvu:.4f}, explained variance {1 - fvu:.4f}, "
