"""A language model that is served and steered: build, serve, choose, ask with and without an edit, measure."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sae_runtime import load_model
from sae_runtime.bundle import files
from sae_runtime.demo.chat import asking
from sae_runtime.demo.chat.building import LAYER, build
from sae_runtime.demo.chat.choosing import Trial, best, candidates, trials
from sae_runtime.demo.chat.questions import TO_CHOOSE, TO_MEASURE
from sae_runtime.demo.chat.words import CONCEPT, distinct_2, named

FEATURES, STRENGTHS = 2, (1.5, 1.7, 1.9, 2.1)
_SHOWN = 3  # answers that are printed; the file has all


def run(model: Path, texts: Path, out: Path) -> None:
    """Run the demo into a folder. What a run that was killed has made is used by the next one.

    Args:
        model: a transformers folder of a chat model.
        texts: lines of JSON with a field text, on which the SAE is fitted.
        out: the folder, with answers.md and figures.json at the end.

    Raises:
        ValueError: the server does not start, or no edit makes an answer name the concept.
    """
    out.mkdir(parents=True, exist_ok=True)
    spliced = build(model, texts, out)
    with contextlib.ExitStack() as held:
        address = held.enter_context(asking.serving(spliced, out / "server.log"))
        click.echo(f"serving on {address}", err=True)
        client = held.enter_context(asking.client_of(address))
        chosen = _chosen(client, spliced, out / "chosen.json")
        told = f"feature {chosen.feature} at layer {LAYER}, {chosen.times:g} times its largest activation"
        click.echo(f"{CONCEPT}: {told}, added to the tokens of the prompt\n")
        sae = asking.edit(chosen.feature, chosen.times)
        plain, steered = (asking.answers(client, TO_MEASURE, one) for one in ({}, sae))
        _print_features(client, sae)
    figures = measured(plain, steered)
    _write(out, told, sae, plain, steered, figures)
    for question, before, after in list(zip(TO_MEASURE, plain, steered, strict=True))[:_SHOWN]:
        click.echo(f"{question}\n  plain    {_line(before)}\n  steered  {_line(after)}\n")
    click.echo(figures_told(figures))
    click.echo(f"all answers: {out / 'answers.md'}", err=True)


def measured(plain: list[str], steered: list[str]) -> dict[str, Any]:
    """How many answers have the concept's words, and how varied the answers are.

    >>> measured(["Bake a cake."], ["Bake it online."])
    {'questions': 1, 'plain naming': 0, 'steered naming': 1, 'plain distinct-2': 1.0, 'steered distinct-2': 1.0}
    """
    naming = [sum(bool(named(text)) for text in texts) for texts in (plain, steered)]
    distinct = [round(distinct_2(texts), 4) for texts in (plain, steered)]
    names = ("plain naming", "steered naming", "plain distinct-2", "steered distinct-2")
    return {"questions": len(plain), **dict(zip(names, [*naming, *distinct], strict=True))}


def figures_told(figures: dict[str, Any]) -> str:
    """The figures as two lines."""
    ratio = figures["steered distinct-2"] / max(figures["plain distinct-2"], 1e-9)
    return (
        f"words of {CONCEPT}: in {figures['steered naming']} steered and {figures['plain naming']} plain answers of "
        f"{figures['questions']}\ndistinct-2: steered {figures['steered distinct-2']:.3f}, plain "
        f"{figures['plain distinct-2']:.3f}, ratio {ratio:.2f}"
    )


def _chosen(client: Any, model: Path, path: Path) -> Trial:
    """The trial that a run before has chosen, or the best one now."""
    if path.exists():
        return Trial(**json.loads(path.read_text())["chosen"])
    click.echo(f"choosing a feature of {CONCEPT}", err=True)
    opened = load_model(model)
    found = candidates(opened, FEATURES)
    opened.close()
    made = trials(found, STRENGTHS, lambda *edit: asking.answers(client, TO_CHOOSE, asking.edit(*edit)))
    chosen = best(made, len(TO_CHOOSE))
    with files.new_file(path) as part:
        part.write_text(
            json.dumps({"chosen": asdict(chosen), "trials": [asdict(one) for one in made]}, indent=2) + "\n"
        )
    return chosen


def _print_features(client: Any, sae: dict[str, Any]) -> None:
    """The strongest features of the words of a question, as the server gives them with an answer."""
    choice = asking.completion(client, TO_MEASURE[0], 0, {**sae, "features": 3}, tokens=1)
    click.echo("features of the tokens of a prompt, the strongest first:")
    for token in choice.sae["tokens"][-16:]:
        told = ", ".join(f"{one['feature']} ({one['value']:.1f})" for one in token["features"])
        click.echo(f"  {token['token']!r:14} {told}")
    click.echo()


def _write(
    out: Path, told: str, sae: dict[str, Any], plain: list[str], steered: list[str], figures: dict[str, Any]
) -> None:
    lines = [f"# {CONCEPT}: {told}", "", f"    {json.dumps({'sae': sae})}", "", figures_told(figures)]
    for question, before, after in zip(TO_MEASURE, plain, steered, strict=True):
        lines += ["", f"## {question}", "", f"Plain: {_line(before)}", ""]
        lines.append(f"Steered ({', '.join(named(after)) or 'none of the words'}): {_line(after)}")
    (out / "answers.md").write_text("\n".join(lines) + "\n")
    (out / "figures.json").write_text(json.dumps({"sae": sae, **figures}, indent=2) + "\n")


def _line(text: str) -> str:
    return " ".join(text.split())
