"""A model in a page of Chromium, with one thread, and the same model here by onnxruntime with one thread, in turn.

Each is loaded from a server on this machine, so that loading takes no network. A text of a page runs the whole graph;
here features run the graph up to the last hook, as `Model.features` does. Run it alone:

    PYTHONPATH=tests python benchmarks/browse_model.py demo-out/model --int8 demo-out/model
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from model_pages import model_page
from turns import alternating
from watched_pages import Pages, browser, until

from sae_runtime import Edit, Model, load_model

TEXT = (
    "The file is opened for reading, and the first line of it is returned as a string without the newline at its end. "
    "If no line is left, an empty string is returned, and the file stays open until it is closed by the caller, or by "
    "the end of the block in which it was opened."
)
PROMPTS = ["What is the capital of France?", "Write a haiku about the sea.", "Name three colours of the rainbow."]
LENGTHS = (6, 64)


def text_of(model: Model, tokens: int) -> str:
    """The first words of a text that have about so many tokens."""
    words, text = TEXT.split(), ""
    for count in range(1, len(words) + 1):
        if len(model.tokenizer.encode([" ".join(words[:count])])[0]) > tokens:
            break
        text = " ".join(words[:count])
    return text


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of one run."""
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def milliseconds(page: Any, model: Model, kind: str, text: str, rounds: int) -> tuple[float, float]:
    """Median times of a text in the page and here, one after the other."""
    is_read = kind == "features"
    script = "(t) => model.features(t)" if is_read else "(t) => model.embed([t], [])"
    here: Callable[[], object] = (lambda: model.features(text)) if is_read else (lambda: model.embed(text))
    measure = (
        f"async (t) => {{ const begun = performance.now(); await ({script})(t); return performance.now() - begun; }}"
    )
    turns = alternating({"page": lambda: float(page.evaluate(measure, text)), "here": lambda: timed(here)}, rounds)
    return float(np.median(turns["page"])), float(np.median(turns["here"]))


def answers(page: Any, model: Model, sae: str, tokens: int) -> list[str]:
    """Lines on steered and plain answers: tokens a second in the page and here, and how many tokens are the same."""
    lines = []
    edits = [{"sae": sae, "feature": 3, "kind": "set", "value": 8}]
    for name, given, python in (("plain", [], []), ("one edit", edits, [Edit.set(3, 8.0)])):
        same = written = ours = 0
        seconds = [0.0, 0.0]
        for prompt in PROMPTS:
            script = "([prompt, edits, tokens]) => model.answer(prompt, edits, { tokens })"
            found = page.evaluate(script, [prompt, given, tokens])
            begun = time.perf_counter()
            answer = model.generate([{"role": "user", "content": prompt}], {sae: python}, max_new_tokens=tokens)
            text = "".join(map(str, answer))
            seconds = [seconds[0] + found["seconds"], seconds[1] + time.perf_counter() - begun]
            written, ours = written + found["tokens"], ours + len(answer.ids)
            same += text == found["text"]
        lines.append(
            f"  answers, {name}: {written / seconds[0]:.1f} tokens a second in the page, {ours / seconds[1]:.1f} here; "
            f"{same} of {len(PROMPTS)} texts are the same"
        )
    return lines


def measure(path: Path, home: Path, *, int8: bool, rounds: int, tokens: int) -> list[str]:
    """Lines on one model."""
    sentences = [f"{sentence.strip()}." for sentence in TEXT.split(",")]
    told = model_page(home, path, sentences=sentences, int8=int8)
    model = load_model(path, threads=1)
    lines = [f"{path}, {told['weights']}: {told['bytes'] / 1e6:.1f} MB to load"]
    with browser() as started:
        pages = Pages(started)
        page = pages(home)
        until(page, "window.started")
        lines.append(f"  loaded in {timed(lambda: page.evaluate('() => opened()')) / 1e3:.1f} s")
        for kind in ("features", *(["embed"] if told["kind"] == "vectors" else [])):
            for length in LENGTHS:
                text = text_of(model, length)
                first = timed(lambda text=text: page.evaluate("(t) => model.features(t)", text))  # type: ignore[misc]
                there, here = milliseconds(page, model, kind, text, rounds)
                count = len(model.tokenizer.encode([text])[0])
                lines.append(
                    f"  {kind} of {count} tokens: {there:.0f} ms in the page ({first:.0f} at first), {here:.0f} here"
                )
        if told["kind"] == "text":
            lines += answers(page, model, told["saes"][0]["name"], tokens)
        pages.close()
    if told["agreement"] is not None:
        lines.append(f"  against the model here: {told['agreement']}")
    return lines


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--int8", multiple=True, type=click.Path(path_type=Path, exists=True), help="with weights of eight bits")
@click.option("--rounds", default=20, show_default=True)
@click.option("--tokens", default=24, show_default=True, help="of an answer")
def main(models: tuple[Path, ...], int8: tuple[Path, ...], rounds: int, tokens: int) -> None:
    """Measure each model."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        for number, (path, eight) in enumerate([*((one, False) for one in models), *((one, True) for one in int8)]):
            print(
                "\n".join(measure(path, Path(home, str(number)), int8=eight, rounds=rounds, tokens=tokens)), flush=True
            )


if __name__ == "__main__":
    main()
