"""What a bfloat16 model changes: features and answers of SmolLM2-135M-Instruct in vLLM and in transformers.

SAE is a bundle for the output of layer 10. Four runs read every active feature of the same windows of docstrings:
transformers with `attach`, and vLLM, each in float32 and in bfloat16; an SAE computes in float32 in all of them. Then
they write greedy answers to the beginnings of the windows, without edits and with four of each request.

- precision, recall: the share of active features of the first run that the second has, and the reverse.
- values: |difference| over the second's value, of features that both have; median and 99 % quantile.
- explained: the variance of transformers' float32 activations that the features of the first run explain.
- equal tokens: the share of the tokens that are equal at their place. After the first difference two answers are two
  texts, so the tokens before it are told too.

`make vllm smollm2` makes the environment and the model.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from before_after import Worker
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from vllm_engine import LAYER
from vllm_tokens import PATH, started, token_ids, told

from sae_runtime.core.features import Features, concatenate
from sae_runtime.serve.edit_objects import read_edits
from sae_runtime.serve.limits import Limits
from sae_runtime.train import attach
from sae_runtime.train.measure.torch_sae import open_sae

Edits = list[dict[str, Any]]  # of a request, as JSON
HOOK = f"model.layers.{LAYER}"
PAIRS = (
    ("vLLM float32", "transformers float32"),
    ("transformers bfloat16", "transformers float32"),
    ("vLLM bfloat16", "vLLM float32"),
    ("vLLM bfloat16", "transformers bfloat16"),
)


@dataclass(frozen=True)
class Run:
    """What one program gives in one dtype.

    Attributes:
        features: of all tokens of the windows.
        written: answers [requests, tokens] without edits, and with.
    """

    features: Features
    written: Mapping[str, NDArray[np.int64]]


@click.command(help=__doc__)
@click.argument("sae", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default=Path(".venv/smollm2"), type=PATH, show_default=True, help="transformers folder")
@click.option("--python", default=Path(".venv/vllm/bin/python"), type=PATH, show_default=True, help="that has vLLM")
@click.option("--windows", default=32, show_default=True, help="of 128 tokens that are read")
@click.option("--answers", default=24, show_default=True, help="that are written")
@click.option("--tokens", default=64, show_default=True, help="of an answer")
@click.option("--threads", default=2, show_default=True, help="of each program")
def main(sae: Path, model: Path, python: Path, windows: int, answers: int, tokens: int, threads: int) -> None:
    """Print both tables."""
    torch.set_num_threads(threads)
    ids = token_ids(model, windows * 512)[:, :128]
    x = activations(model, ids)
    edits = strong_edits(sae, x, answers)
    runs: dict[str, Run] = {}
    for dtype in ("float32", "bfloat16"):
        runs[f"transformers {dtype}"] = of_transformers(model, sae, dtype, ids, edits, tokens)
        with ExitStack() as stack:
            engine = started(stack, python, model, sae, threads, dtype=dtype)
            runs[f"vLLM {dtype}"] = of_vllm(engine, sae, ids, edits, tokens)
    features_table(runs, explained(sae, x, runs))
    answers_table(runs)
    told(python, threads)


def activations(model: Path, ids: NDArray[np.int64]) -> torch.Tensor:
    """The stream after the layer in float32, [windows * 128, d_in]."""
    host: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        parts = [
            host(part, output_hidden_states=True).hidden_states[LAYER + 1]
            for part in torch.split(torch.from_numpy(ids), 8)
        ]
    return torch.cat(parts).flatten(0, 1)


def strong_edits(sae: Path, x: torch.Tensor, requests: int) -> list[Edits]:
    """Four edits of each request, of features that are active on a hundredth to a tenth of the tokens."""
    with torch.inference_mode():
        f = open_sae(sae).features(x)
    density, largest = (f > 0).float().mean(dim=0), f.amax(dim=0)
    usual = torch.nonzero((density > 0.01) & (density < 0.1))[:, 0].tolist()
    rng, edits = np.random.default_rng(0), list[Edits]()
    for _ in range(requests):
        a, b, c, d = (int(one) for one in rng.choice(usual, 4, replace=False))
        most = [float(largest[one]) for one in (a, b)]
        edits.append(
            [
                {"feature": a, "set": most[0]},
                {"feature": b, "add": most[1] / 2},
                {"feature": c, "scale": 2},
                {"feature": d, "ablate": True},
            ]
        )
    return edits


def of_transformers(model: Path, sae: Path, dtype: str, ids: NDArray[np.int64], edits: list[Edits], tokens: int) -> Run:
    """Features and answers by `attach`."""
    host: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    host.generation_config.eos_token_id = None  # an answer goes on, as with vLLM's ignore_eos
    given = torch.from_numpy(ids)
    with torch.inference_mode(), attach(host, HOOK, sae) as seen:
        for part in torch.split(given, 8):
            host(part)
    prompts = given[: len(edits), :32]
    written = {}
    for name, own in (("none", []), ("four", [read_edits(one, Limits())[None] for one in edits])):
        with torch.inference_mode(), attach(host, HOOK, sae, own):
            asked = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": tokens, "do_sample": False}
            written[name] = host.generate(prompts, **asked)[:, 32:].numpy()
    whole = concatenate(seen, seen[0].d_sae, (ids.size,))
    return Run(whole, written)


def of_counts(counts: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], d_sae: int) -> Features:
    """Features out of the number of those of each token."""
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Features(indptr, indices, values, d_sae, (len(counts),))


def of_vllm(engine: Worker, sae: Path, ids: NDArray[np.int64], edits: list[Edits], tokens: int) -> Run:
    """Features and answers by an engine."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home, "features.npz")
        asked: dict[str, Any] = {"prompts": ids.tolist(), "tokens": 1, "asked": [{"sae_features": "all"}] * len(ids)}
        engine.ask(json.dumps({**asked, "save": str(file)}))
        with np.load(file) as read:
            d_sae = open_sae(sae).manifest.architecture.d_sae
            features = of_counts(read["counts"], read["indices"], read["values"], d_sae)
    asked = {"prompts": ids[: len(edits), :32].tolist(), "tokens": tokens}
    written = {}
    for name, own in (("none", None), ("four", [{"sae_edits": json.dumps(one)} for one in edits])):
        written[name] = np.array(engine.ask(json.dumps({**asked, "asked": own}))["written"])
    return Run(features, written)


def explained(sae: Path, x: torch.Tensor, runs: Mapping[str, Run]) -> dict[str, float]:
    """How much of the variance of float32 activations the features of each run explain."""
    opened, found = open_sae(sae), {}
    spread = (x - x.mean(dim=0)).square().sum()
    for name, run in runs.items():
        with torch.inference_mode():
            y = opened.decode(torch.from_numpy(run.features.to_dense()), x)
            found[name] = 1 - float((x - y).square().sum() / spread)
    return found


def features_table(runs: Mapping[str, Run], explains: Mapping[str, float]) -> None:
    """Print how far the features of each pair agree."""
    print("| features of | against | precision | recall | L0, both | values, median | values, 99 % | explained, both |")
    print("|---|---|---|---|---|---|---|---|")
    for first, second in PAIRS:
        a, b = (runs[name].features.to_dense() for name in (first, second))
        both = (a > 0) & (b > 0)
        error = np.abs(a[both] - b[both]) / b[both]
        l0 = [(one > 0).sum(axis=1).mean() for one in (a, b)]
        median, most = np.quantile(error, [0.5, 0.99])
        print(
            f"| {first} | {second} | {both.sum() / (a > 0).sum():.4f} | {both.sum() / (b > 0).sum():.4f} | "
            f"{l0[0]:.2f}, {l0[1]:.2f} | {median:.1e} | {most:.1e} | {explains[first]:.4f}, {explains[second]:.4f} |"
        )
    print(f"\n{len(a):,} tokens.\n")


def answers_table(runs: Mapping[str, Run]) -> None:
    """Print how far the answers of each pair agree."""
    print("| answers of | against | edits | wholly equal | tokens before the first difference | equal tokens |")
    print("|---|---|---|---|---|---|")
    for first, second in PAIRS:
        for edits in ("none", "four"):
            same = runs[first].written[edits] == runs[second].written[edits]
            before = np.cumprod(same, axis=1).sum(axis=1)
            print(
                f"| {first} | {second} | {edits} | {same.all(axis=1).sum()} of {len(same)} | {before.mean():.1f} of "
                f"{same.shape[1]} | {same.mean():.0%} |"
            )


if __name__ == "__main__":
    main()
