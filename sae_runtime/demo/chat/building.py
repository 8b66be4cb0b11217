"""From a transformers folder and texts to a language model that is served: each step once, also after a kill."""

import importlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import click

from sae_runtime.activations.stored import INDEX, open_activations
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.train import HarvestConfig, TrainConfig, fit
from sae_runtime.train.harvest import harvest

LAYER = 12
ROWS, D_SAE, K = 250_000, 3072, 32
FITTED = 600_000  # tokens of the fit; each row comes more than twice


def build(model: Path, texts: Path, out: Path) -> Path:
    """The folder of the spliced model.

    Args:
        model: a transformers folder of a causal language model.
        texts: lines of JSON with a field text.
        out: a folder for what each step makes; a step whose result is there is passed over.
    """
    activations, sae, host, spliced = (out / name for name in ("activations", "sae", "host", "model"))
    config = HarvestConfig(
        model=str(model), hook=f"model.layers.{LAYER}", text=(texts,), tokens=ROWS, dtype="float16", device="cpu"
    )
    step(sae, lambda part: _fit(config, activations, part))
    step(host, lambda part: _int4(model, part))
    wanted = Splice(bundle=sae, required=True)
    step(spliced, lambda part: splice(host / "model.onnx", [wanted], part))
    return spliced


def step(path: Path, make: Callable[[Path], object]) -> None:
    """Make a folder under another name, which becomes `path` when all is there; nothing where `path` is there.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as home:
    ...     for _ in range(2):
    ...         step(Path(home, "made"), lambda part: print("made once") or part.mkdir())
    made once
    """
    if path.exists():
        return
    click.echo(f"making {path}", err=True)
    begun = time.process_time()
    part = path.with_name(f"{path.name}.part")
    if part.exists():
        shutil.rmtree(part)
    make(part)
    os.replace(part, path)
    click.echo(f"made {path} in {time.process_time() - begun:.0f} s of processor time", err=True)


def _fit(config: HarvestConfig, activations: Path, sae: Path) -> None:
    """Harvest and fit, each from where it was interrupted."""
    whole = (activations / INDEX).is_file()
    held = open_activations(activations) if whole else harvest(config, activations, progress=True)
    state = sae.with_name("run-state")
    settings = TrainConfig(allocation="mutual", k=K, d_sae=D_SAE, tokens=FITTED, seed=0, device="cpu")
    fit(held, sae, settings, run_state=state, run_state_seconds=30, resume=True, progress=True)
    export(sae)


def _int4(model: Path, host: Path) -> None:
    """The int4 graph of onnxruntime-genai's builder."""
    builder = importlib.import_module("onnxruntime_genai.models.builder")
    task = ("", str(model), str(host), "int4", "cpu", str(host.with_name("builder")))
    builder.create_model(*task, **builder.parse_extra_options(*task, []))
