"""A training step on a GPU: parity, time and memory beside the peers' own steps, and the share that its product has.

Each step is built, run at every number of tokens and freed before the next, so that each has the device's memory for
itself; passes over all of them alternate, and a row is the median. Ours has everything a run has: selection, decoder
upkeep, clipping, fused Adam, density statistics, and an auxiliary loss over a fiftieth of the features. In bfloat16 its
product nominates the matches and the rest stays float32; the peers run under autocast, as their own trainers do.

    python benchmarks/gpu.py                        # some minutes; exit 1 where numbers disagree
    python benchmarks/gpu.py --device cpu --tiny    # only tries the script out
"""

import gc
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from itertools import product
from typing import Any

import click
import numpy as np
import torch
from peers import dictionary_learning_batch_topk, sae_lens_batch_topk, sparsify_topk
from torch import Tensor
from tqdm import tqdm
from under_used import with_fiftieth_under_used

from sae_runtime.train import TrainConfig
from sae_runtime.train.device import first_line, usable_device
from sae_runtime.train.recipe import derive
from sae_runtime.train.step import cpu_kernels
from sae_runtime.train.step.matches import Matches
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Step as Gradients
from sae_runtime.train.step.plain_step import plain_step
from sae_runtime.train.step.sparse_step import Kernels, SparseStep
from sae_runtime.train.trainer import Trainer

Step = Callable[[Tensor], object]
Build = Callable[[int], Step]
"""Takes d_sae."""

OURS, PRODUCT, SPARSIFY, BOTH = "ours", "the product alone", "sparsify TopK", ("float32", "bfloat16")
PEERS = {
    "SAELens BatchTopK": sae_lens_batch_topk,
    "dictionary_learning BatchTopK": dictionary_learning_batch_topk,
    SPARSIFY: sparsify_topk,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    d_in: int
    d_sae: tuple[int, ...]
    n: tuple[int, ...]
    k: int
    square: int  # side of the matrices whose product says what the device can do


@dataclass
class Measured:
    """One step at one size."""

    seconds: list[float] = field(default_factory=list)  # of every round
    peak: int = 0  # bytes
    error: str = ""  # why there is no more

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


Found = dict[tuple[str, str], dict[tuple[int, int], Measured]]
"""By name and precision, then by d_sae and n."""


def kernels_on(device: torch.device) -> Kernels:
    """The kernels that a run takes on that device."""
    if device.type == "cpu":
        return cpu_kernels
    from sae_runtime.train.step import triton_kernels

    return triton_kernels


def our_step(d_sae: int, *, sizes: Sizes, precision: str, device: torch.device) -> Step:
    """A step of mutual choice in which a fiftieth of the features is under-used."""
    n = max(sizes.n)
    config = TrainConfig(k=sizes.k, d_sae=d_sae, tokens=n * 10_000, batch=n, lr=1e-4, product_dtype=precision)
    model = SparseAutoencoder(d_sae, torch.zeros(sizes.d_in), generator=torch.Generator().manual_seed(0)).to(device)
    gradients = with_fiftieth_under_used(
        SparseStep(product_dtype=getattr(torch, precision), kernels=kernels_on(device))
    )
    return Trainer(model, config, derive(config, sizes.d_in), rng=np.random.default_rng(0), gradients=gradients).step


def product_alone(d_sae: int, *, sizes: Sizes, precision: str, device: torch.device) -> Step:
    """The encoder's product and nothing else."""
    weight = torch.randn(d_sae, sizes.d_in, device=device, dtype=getattr(torch, precision))
    return lambda x: x.to(weight.dtype) @ weight.T


def peer_step(d_sae: int, *, make: Callable[..., Step], sizes: Sizes, precision: str, device: torch.device) -> Step:
    """A peer's step; in bfloat16 within autocast."""
    step = make(sizes.d_in, d_sae, sizes.k, 1e-4, device=str(device))

    def run(x: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            step(x)

    return run


def all_steps(sizes: Sizes, device: torch.device, peers: bool) -> dict[tuple[str, str], Build]:
    """How to build each step, by name and precision."""
    steps: dict[tuple[str, str], Build] = {}
    for precision in BOTH:
        given: dict[str, Any] = {"sizes": sizes, "precision": precision, "device": device}
        steps[PRODUCT, precision] = partial(product_alone, **given)
        steps[OURS, precision] = partial(our_step, **given)
        for name, make in PEERS.items() if peers else ():
            # On CUDA sparsify's forward enters bfloat16 autocast by itself, whatever it is asked.
            if name != SPARSIFY or device.type == "cpu" or precision == "bfloat16":
                steps[name, precision] = partial(peer_step, make=make, **given)
    return steps


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done its work."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3


def measure(step: Step, n: int, row: Measured, d_in: int, device: torch.device, rounds: int) -> None:
    """Add rounds of a step to a row, after two to warm up, and the most memory that they held."""
    batches = [torch.randn(n, d_in, device=device) for _ in range(3)]
    for x in batches[:2]:
        step(x)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    row.seconds += [seconds_of(partial(step, batches[i % 3]), device) for i in range(rounds)]
    if device.type == "cuda":
        row.peak = max(row.peak, torch.cuda.max_memory_allocated(device))


def measure_all(
    build: Build, d_sae: int, rows: dict[tuple[int, int], Measured], sizes: Sizes, device: torch.device, rounds: int
) -> None:
    """Build a step and measure it at every n; what fails leaves its reason in the row, and the rest goes on."""
    try:
        step = build(d_sae)
    except Exception as error:
        for n in sizes.n:
            rows[d_sae, n].error = reason(error)
        return
    for n in sizes.n:
        try:
            measure(step, n, rows[d_sae, n], sizes.d_in, device, rounds)
        except Exception as error:
            rows[d_sae, n].error = reason(error)
    del step
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """Why a row is empty, in few words."""
    if isinstance(error, ImportError):
        return f"not installed ({error.name})"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {first_line(error)}".replace("|", "/")


def best_flops(side: int, precision: str, device: torch.device) -> float:
    """Floating point operations a second of the product of two large square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    times = [seconds_of(lambda: a @ b, device) for _ in range(12)]
    return float(2 * side**3 / min(times))


def parity(d_in: int, n: int, d_sae: int, k: int, device: torch.device) -> list[tuple[str, float, float]]:
    """What was compared, the error relative to the norm, and the error allowed.

    The kernels stand against float64 torch and against themselves, whole steps against autograd.
    """
    generator, kernels = torch.Generator().manual_seed(0), kernels_on(device)
    # Cubes crowd the matches on few features: some have thousands, some none.
    feature = (torch.rand(n * k, generator=generator) ** 3 * d_sae).long()
    at = torch.unique(torch.randint(n, (n * k,), generator=generator) * d_sae + feature).to(device)
    found = Matches(at, torch.rand(len(at), generator=generator).to(device), n, d_sae)
    tokens, features = (torch.randn(rows, d_in, generator=generator).to(device) for rows in (n, d_sae))
    weights = torch.randn(len(at), generator=generator).to(device)
    runs: dict[str, Callable[[], Tensor]] = {
        "reconstruct": lambda: kernels.reconstruct(found, features),
        "dots": lambda: kernels.dots(tokens, features, found),
        "sums_by_feature": lambda: kernels.sums_by_feature(tokens, weights, found),
    }
    of_token, of_feature = tokens.double()[found.token], features.double()[found.feature]
    truths = {
        "reconstruct": of_token.new_zeros(n, d_in).index_add_(0, found.token, found.values[:, None] * of_feature),
        "dots": (of_token * of_feature).sum(dim=1),
        "sums_by_feature": of_token.new_zeros(d_sae, d_in).index_add_(0, found.feature, weights[:, None] * of_token),
    }
    rows = [(name, _distance(run(), truths[name]), 1e-6) for name, run in runs.items()]
    rows += [(f"{name}, run again", float(not torch.equal(run(), run())), 0.0) for name, run in runs.items()]
    truth = _gradients(plain_step, d_in, device)
    for precision in BOTH:
        mine = _gradients(SparseStep(product_dtype=getattr(torch, precision), kernels=kernels), d_in, device)
        rows += [(f"{name}'s gradient, {precision}", _distance(mine[name], truth[name]), 1e-4) for name in truth]
    return rows


def _distance(mine: Tensor, truth: Tensor) -> float:
    return float((mine - truth).norm() / truth.norm())


def _gradients(step: Gradients, d_in: int, device: torch.device) -> dict[str, Tensor]:
    # Few pre-activations: where many crowd around the cut, two orders of summation may choose different matches.
    generator, n, d_sae = torch.Generator().manual_seed(0), 512, 2048
    model = SparseAutoencoder(d_sae, torch.zeros(d_in), generator=generator).to(device)
    x, among = torch.randn(n, d_in, generator=generator).to(device), torch.arange(d_sae, device=device) % 50 == 0
    step(model, x, {"total": 8 * n}, lambda counts, tokens: among, 0.1, 16)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def table(*columns: str) -> None:
    """Print the head of a markdown table."""
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def print_times(sizes: Sizes, found: Found) -> None:
    """Time and memory of every step, and how near ours comes to the product alone."""
    table("d_sae", "n", "step", "precision", "ms", "over ours", "peak GiB")
    for d_sae, n in product(sizes.d_sae, sizes.n):
        for name, precision in found:
            row, ours = found[name, precision][d_sae, n], found[OURS, precision][d_sae, n]
            ms = row.error or f"{row.median * 1e3:.2f}"
            over = f"{row.median / ours.median:.2f}" if row.seconds and ours.seconds else ""
            print(f"| {d_sae} | {n} | {name} | {precision} | {ms} | {over} | {row.peak / 2**30:.1f} |")


def print_roofline(sizes: Sizes, found: Found, device: torch.device) -> None:
    """How much of our step is its one product, and what the device could do in that time."""
    best = {precision: best_flops(sizes.square, precision, device) for precision in BOTH}
    table(
        "d_sae", "n", "precision", "product / step", "product, TFLOP/s", "best square product, TFLOP/s", "step / best"
    )
    for d_sae, n in product(sizes.d_sae, sizes.n):
        for precision in BOTH:
            alone, ours = found[PRODUCT, precision][d_sae, n], found[OURS, precision][d_sae, n]
            if alone.seconds and ours.seconds:
                flops, most = 2 * n * sizes.d_in * d_sae, best[precision]
                print(
                    f"| {d_sae} | {n} | {precision} | {alone.median / ours.median:.2f} "
                    f"| {flops / alone.median / 1e12:.1f} | {most / 1e12:.1f} | {flops / ours.median / most:.2f} |"
                )


def version(name: str) -> str:
    """Of a distribution, or that it is not there."""
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name} not installed"


@click.command()
@click.option("--device", "name", default="cuda")
@click.option("--d-in", default=768)
@click.option("--d-sae", default=(24_576, 98_304), multiple=True)
@click.option("--n", default=(8_192, 16_384, 32_768), multiple=True)
@click.option("--k", default=32)
@click.option("--rounds", default=7, type=click.IntRange(min=1), help="timed steps of a pass")
@click.option("--passes", default=2, type=click.IntRange(min=1), help="times that every step is built anew")
@click.option("--peers/--no-peers", default=True)
@click.option("--tiny", is_flag=True, help="sizes that only try the script out")
def main(
    name: str,
    d_in: int,
    d_sae: tuple[int, ...],
    n: tuple[int, ...],
    k: int,
    rounds: int,
    passes: int,
    peers: bool,
    tiny: bool,
) -> None:
    """Print markdown tables; exit 1 where the numbers disagree."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        device = usable_device(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    sizes = Sizes(d_in=d_in, d_sae=d_sae, n=n, k=k, square=8192)
    if tiny:
        sizes, rounds, passes = Sizes(d_in=64, d_sae=(512, 1024), n=(128, 256), k=4, square=256), 2, 1
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    libraries = ("torch", "triton", "sae-lens", "dictionary-learning", "eai-sparsify")
    print(f"{what}, CUDA {torch.version.cuda}, {', '.join(map(version, libraries))}; d_in {sizes.d_in}, k {sizes.k}")

    table("parity", "error", "allowed", "")
    rows = parity(sizes.d_in, min(sizes.n[0], 4096), min(sizes.d_sae[0], 16_384), sizes.k, device)
    for text, off, allowed in rows:
        print(f"| {text} | {off:.1e} | {allowed:.0e} | {'ok' if off <= allowed else 'WRONG'} |")

    steps = all_steps(sizes, device, peers)
    found: Found = {key: {at: Measured() for at in product(sizes.d_sae, sizes.n)} for key in steps}
    for _, size, key in tqdm(list(product(range(passes), sizes.d_sae, steps)), disable=None):
        measure_all(steps[key], size, found[key], sizes, device, rounds)
    print_times(sizes, found)
    print_roofline(sizes, found, device)
    failed = any(row.error for precision in BOTH for row in found[OURS, precision].values())
    if failed or any(error > allowed for _, error, allowed in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
