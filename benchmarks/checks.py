"""What the checks of bundles, answers and Features cost: load, encode, decode and steer beside an older installation.

By processor time on one thread, taken in turn as in before_after.py: A is the older installation, B is this one. The
weights are random, and the bundles are made by this checkout: the older one must know their schema.

    python benchmarks/checks.py --other ../before/.venv/bin/python
"""

import contextlib
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np
from before_after import print_table, seconds_by_task, workers
from timing import Task, answer_lines

from sae_runtime import Edit, load

SIZES = {"small": (384, 1_536, 32), "large": (768, 16_384, 32)}  # d_in, d_sae, k


def make_bundle(path: Path, d_in: int, d_sae: int, k: int) -> None:
    """A bundle of mutual choice with graphs, about k features for a token of normal numbers."""
    from sae_runtime.bundle import folder
    from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
    from sae_runtime.exports import export

    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((d_sae, d_in)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    x = rng.standard_normal((512, d_in)).astype(np.float32)
    cut = np.quantile(x @ decoder.T, 1 - k / d_sae)
    weights = {
        "W_enc": np.ascontiguousarray(decoder.T),
        "W_dec": decoder,
        "b_enc": np.zeros(d_sae, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
        "threshold": np.full(d_sae, cut, np.float32),
    }
    architecture = Architecture(d_in=d_in, d_sae=d_sae, selection="threshold")
    manifest = Manifest(architecture=architecture, allocation=Allocation(kind="mutual", k=float(k)), slots=2 * k)
    folder.write(path, weights, manifest, sample=x)
    export(path)


def tasks_of(path: Path) -> dict[str, Task]:
    """What is timed of a bundle, by name."""
    name, sae = path.name, load(path, threads=1)
    tasks: dict[str, Task] = {
        f"{name}: load": partial(load, path, threads=1),
        f"{name}: load(verify=False)": partial(load, path, threads=1, verify=False),
    }
    x = np.random.default_rng(1).standard_normal((1024, sae.d_in)).astype(np.float32)
    for tokens in (1, 16, 1024):
        features = sae.encode(x[:tokens])
        tasks |= {
            f"{name}: encode {tokens}": partial(sae.encode, x[:tokens]),
            f"{name}: decode {tokens}": partial(sae.decode, features),
            f"{name}: steer {tokens}": partial(sae.steer, x[:tokens], Edit.set(3, 8.0)),
        }
    return tasks


@click.command()
@click.option("--other", type=click.Path(exists=True, path_type=Path), help="interpreter of the older installation")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--serve", type=click.Path(exists=True, path_type=Path), hidden=True, help="be a worker for this folder")
def main(other: Path | None, rounds: int, serve: Path | None) -> None:
    """Print a table; exit 1 where a task is slower."""
    if serve is not None:
        with contextlib.redirect_stdout(sys.stderr):
            tasks = [tasks_of(serve / name) for name in SIZES]
        return answer_lines({name: task for part in tasks for name, task in part.items()}, sys.stdout)
    if other is None:
        raise click.UsageError("name the older installation: --other PYTHON")
    with tempfile.TemporaryDirectory() as name:
        here, folder = Path(), Path(name)
        for size, numbers in SIZES.items():
            make_bundle(folder / size, *numbers)
        script = (Path(__file__).absolute(), "--serve", folder)
        with workers(other, here, Path(sys.executable), here, 1, script) as made:
            seconds = seconds_by_task(made, rounds)
    raise SystemExit("slower" in print_table(seconds))


if __name__ == "__main__":
    main()
