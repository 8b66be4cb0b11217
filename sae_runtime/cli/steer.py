"""sae-runtime steer."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_runtime.activations.stored import Activations, Shard, check_source, open_activations
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.cli.common import (
    PATH,
    any_source_option,
    bundle_argument,
    force_option,
    json_option,
    output_option,
    plural,
    quiet_option,
    session_options,
    show,
)
from sae_runtime.cli.options import Command
from sae_runtime.core.edits import Edit, as_inputs
from sae_runtime.sae import SAE, load

F = TypeVar("F", bound=Callable[..., Any])

_CHUNK = 4_096  # tokens read and steered at once


def _pairs(ctx: click.Context, option: click.Parameter, values: Sequence[str]) -> list[tuple[int, float]]:
    """Callback of an option of FEATURE=NUMBER."""
    return [_pair(ctx, option, value) for value in values]


def _pair(ctx: click.Context, option: click.Parameter, value: str) -> tuple[int, float]:
    feature, _, number = value.partition("=")
    try:
        pair = int(feature), float(number)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not FEATURE=NUMBER, such as 12=8.0.", ctx, option) from None
    if not math.isfinite(pair[1]):
        raise click.BadParameter(f"{value!r} needs a finite number.", ctx, option)
    return pair


def _edit_option(verb: str, help: str) -> Callable[[F], F]:
    return click.option(f"--{verb}", multiple=True, metavar="FEATURE=NUMBER", callback=_pairs, help=help)


@click.command("steer", cls=Command)
@bundle_argument
@click.option(
    "--activations",
    type=PATH,
    required=True,
    help=".npy of shape [..., d_in], or .safetensors or folder of harvest, [n, d_in]",
)
@_edit_option("set", "the feature has this value on every token")
@_edit_option("add", "its value is raised by this on every token")
@_edit_option("scale", "it is stronger or weaker by this factor, where it fires")
@click.option("--ablate", multiple=True, type=click.INT, metavar="FEATURE", help="it is off")
@_edit_option("cap", "its value is at most this")
@output_option(".npy or .safetensors to write, float32")
@any_source_option
@session_options
@force_option
@quiet_option
@json_option
def command(
    bundle: Path,
    activations: Path,
    output: Path,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
    provider: tuple[str, ...],
    threads: int | None,
    **edits: Any,
) -> None:
    """Edit features of activations.

    Every option that names a feature may be repeated; a feature takes one edit. All else in the activations stays,
    what the SAE cannot explain included.
    """
    if output.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"the output must be an .npy or a .safetensors file, got {output}")
    Output(path=output, kind="file", force=force, inputs={"bundle": bundle, "activations": activations}).check()
    chosen = [Edit.ablate(feature) for feature in edits.pop("ablate")]
    chosen += [getattr(Edit, verb)(*pair) for verb, pairs in edits.items() for pair in pairs]
    rows, shape = _opened(activations)
    sae = load(bundle, providers=provider, threads=threads)
    as_inputs([chosen], sae.d_sae)  # refuses an edit before the first token is read
    check_source(rows, sae.manifest, any_source=any_source)
    _steer(sae, rows, shape, chosen, output, force=force, progress=not quiet)
    result = {"activations": output, "shape": shape, "edits": len(chosen)}
    lines = [
        ("activations", output),
        ("shape", " x ".join(map(str, shape))),
        ("edits", f"{plural(len(chosen), 'feature')} on {plural(len(rows), 'token')}"),
    ]
    show(result, lines, json=json)


def _opened(path: Path) -> tuple[Activations, tuple[int, ...]]:
    """Activations as rows, and the shape that they have on disk."""
    if path.suffix != ".npy" or not path.is_file():
        rows = open_activations(path)
        return rows, (len(rows), rows.d_in)
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole .npy file ({error}); save it again") from error
    if x.ndim == 0 or x.shape[-1] == 0 or x.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {x.dtype} {list(x.shape)}, expected real numbers of shape [..., d_in]")
    return Activations(path, [Shard(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))]), x.shape


def _steer(
    sae: SAE,
    rows: Activations,
    shape: tuple[int, ...],
    edits: Sequence[Edit],
    out: Path,
    *,
    force: bool,
    progress: bool,
) -> None:
    """Write the steered rows in the given shape; an .npy is filled piece by piece, a .safetensors at the end."""
    bar = tqdm(total=len(rows), unit="token", unit_scale=True, disable=None if progress else True)
    with new_file(out, force=force) as partial, bar:
        if out.suffix == ".npy":
            # Not mapped: a full disk would kill the process by a signal instead of raising an error.
            with partial.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for y in _steered(sae, rows, edits, bar):
                    file.write(y.astype("<f4", copy=False).tobytes())
        else:
            flat, begin = np.empty((len(rows), rows.d_in), np.float32), 0
            for y in _steered(sae, rows, edits, bar):
                flat[begin : begin + len(y)] = y
                begin += len(y)
            ids = {"tokens": rows.tokens, "documents": rows.documents, "positions": rows.positions}
            known = {name: array for name, array in ids.items() if array is not None}
            save_tensors(partial, {"activations": flat.reshape(shape), **known})


def _steered(sae: SAE, rows: Activations, edits: Sequence[Edit], bar: Any) -> Iterator[NDArray[np.float32]]:
    for begin in range(0, len(rows), _CHUNK):
        y = sae.steer(rows.slice(begin, begin + _CHUNK), edits)
        bar.update(len(y))
        yield y
