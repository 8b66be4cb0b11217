"""Tokens a second of the generation loop beside onnxruntime-genai's Generator, on one spliced SmolLM2-135M-Instruct.

genai's builder makes the model, int4 and float32, and an SAE of random directions goes into it at one layer. Both
programs read the same prompts and write the same number of tokens, with edits and without; the table says whether the
tokens are equal. Ours, genai's and ours once more take turns in one process with the same threads, so "itself" shows
the noise. "Processor" is the ratio of processor times, which other programs on the machine move less.

`make smollm2` makes the model.
"""

import functools
import importlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray
from turns import alternating

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.core.edits import as_inputs
from sae_runtime.deployed.host_inputs import read_host_inputs
from sae_runtime.deployed.layout import read_layout
from sae_runtime.engine.sessions import open_session
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice
from sae_runtime.generation.decoder import Decoder, open_decoder
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Request
from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer

LAYER, D_IN, D_SAE = 10, 576, 4096
PROMPT = "Once upon a time there was a small village in the mountains where nobody had ever seen the sea."
FOLDER = click.Path(file_okay=False, path_type=Path)
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Turn:
    """Seconds from the first prompt to the last token, by the clock and of the processors, and the tokens."""

    wall: float
    processor: float
    ids: list[list[int]]


@click.command(help=__doc__)
@click.option("--model", default=Path(".venv/smollm2"), type=FOLDER, show_default=True, help="transformers folder")
@click.option("--cache", default=Path("build/generate"), type=FOLDER, show_default=True, help="keeps what is made")
@click.option("--build", "precisions", multiple=True, default=("int4", "fp32"), show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 8), show_default=True)
@click.option("--tokens", default=64, show_default=True, help="of each answer")
@click.option("--threads", default=2, show_default=True, help="of both programs")
@click.option("--rounds", default=7, show_default=True, help="turns of each")
def main(
    model: Path,
    cache: Path,
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    tokens: int,
    threads: int,
    rounds: int,
) -> None:
    """Print a line for each precision, number of requests, and edits."""
    print("| model | requests | edits | ours, tokens/s | genai, tokens/s | ours / genai | itself | processor | equal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for precision in precisions:
        home = made(model, cache / precision, precision)
        decoder, tokenizer = opened(home, threads)
        config = og.Config(str(home))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        generator = og.Model(config)
        prompt = tokenizer.encode([PROMPT])[0].ids
        for requests, count in itertools.product(batches, (0, 4)):
            edits = [[Edit.set(7 * row + i, 2.0) for i in range(count)] for row in range(requests)]
            own = functools.partial(ours, decoder, tokenizer, edits, tokens)
            runs = {"ours": own, "genai": functools.partial(genai, generator, prompt, edits, tokens), "itself": own}
            print(line(precision, requests, count, tokens, taken(runs, rounds)), flush=True)


def made(model: Path, home: Path, precision: str) -> Path:
    """The folder of the spliced model."""
    if not (home / "spliced" / "model.onnx").is_file():
        builder = importlib.import_module("onnxruntime_genai.models.builder")
        task = ("", str(model), str(home / "host"), precision, "cpu", str(home / "builder"))
        builder.create_model(*task, **builder.parse_extra_options(*task, []))
        rng = np.random.default_rng(0)
        decoder = rng.standard_normal((D_SAE, D_IN)).astype(np.float32)
        decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
        weights = {
            **{"W_enc": np.ascontiguousarray(decoder.T), "W_dec": decoder, "b_enc": np.zeros(D_SAE, np.float32)},
            **{"b_dec": np.zeros(D_IN, np.float32), "threshold": np.full(D_SAE, 1.5, np.float32)},
        }
        architecture = Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold")
        allocation = Allocation(kind="mutual", k=32.0)
        bundle.write(home / "sae", weights, Manifest(architecture=architecture, allocation=allocation, slots=64))
        export(home / "sae")
        one = Splice(bundle=home / "sae", hook=f"model.layers.{LAYER}", required=True)
        splice(home / "host" / "model.onnx", [one], home / "spliced")
    return home / "spliced"


def opened(home: Path, threads: int) -> tuple[Decoder, Tokenizer]:
    """The graph for our loop, and its tokenizer."""
    layout = read_layout(home)
    session = open_session(layout.graph, threads=threads)
    own = [name for spliced in layout.splices.values() for name in spliced.inputs]
    inputs = read_host_inputs(session, own=own, config=layout.config, genai=layout.genai, graph=layout.graph)
    return open_decoder(session, layout, inputs), open_tokenizer(layout.home)


def ours(decoder: Decoder, tokenizer: Tokenizer, edits: list[list[Edit]], tokens: int) -> Turn:
    """The answers of our loop. No token ends them."""
    wall, processor = time.perf_counter(), time.process_time()
    loop, requests = Loop(decoder), []
    for asked in edits:
        request = Request(tokenizer.encode([PROMPT])[0], tokenizer.stream(), edits={"sae": asked}, most=tokens)
        requests.append(request)
        loop.add(request)
    while len(loop):
        loop.step()
    ids = [request.ids for request in requests]
    return Turn(time.perf_counter() - wall, time.process_time() - processor, ids)


def genai(model: Any, prompt: Ids, edits: list[list[Edit]], tokens: int) -> Turn:
    """The answers of genai's Generator. The end token is not to be drawn before the last one."""
    wall, processor = time.perf_counter(), time.process_time()
    settings = og.GeneratorParams(model)
    settings.set_search_options(batch_size=len(edits), max_length=len(prompt) + tokens, do_sample=False)
    generator = og.Generator(model, settings)
    ones = np.ones((1, 1, 1), np.float32)
    inputs = {**as_inputs(edits, D_SAE), "gate": ones, "direction": 0 * ones, "slots": np.array([0])}
    inputs |= {"when": np.zeros((1, 0), np.int64), "above": np.zeros((1, 0), np.float32)}
    for name, array in inputs.items():
        generator.set_model_input(f"sae_{name}", array)
    generator.append_tokens(np.tile(prompt.astype(np.int32), (len(edits), 1)))
    while not generator.is_done():
        generator.generate_next_token()
    ids = [generator.get_sequence(row)[len(prompt) :].tolist() for row in range(len(edits))]
    return Turn(time.perf_counter() - wall, time.process_time() - processor, ids)


def taken(runs: Mapping[str, Callable[[], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Turns of each run, after one that does not count."""
    for run in runs.values():
        run()
    return alternating(runs, rounds)


def line(precision: str, requests: int, edits: int, tokens: int, turns: dict[str, list[Turn]]) -> str:
    """A line of the table."""
    speed = {name: requests * tokens / statistics.median(turn.wall for turn in own) for name, own in turns.items()}
    ratios = [other.wall / own.wall for own, other in zip(turns["ours"], turns["genai"], strict=True)]
    itself = [other.wall / own.wall for own, other in zip(turns["ours"], turns["itself"], strict=True)]
    spent = [other.processor / own.processor for own, other in zip(turns["ours"], turns["genai"], strict=True)]
    equal = turns["ours"][0].ids == turns["genai"][0].ids
    return (
        f"| {precision} | {requests} | {edits or 'none'} | {speed['ours']:.0f} | {speed['genai']:.0f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {statistics.median(itself):.2f} | "
        f"{statistics.median(spent):.2f} | {'yes' if equal else 'NO'} |"
    )


if __name__ == "__main__":
    main()
