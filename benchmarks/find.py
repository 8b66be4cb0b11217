"""`features find` on docstrings of two modules of the standard library: held-out AUC of the best features, as a table.

The last pair is one set parted at random: there every feature is as good as chance.
"""

import ast
import inspect
import random
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import click

from sae_runtime import Model, load_model
from sae_runtime.extraction.finding import Found, find

PAIRS = (("email", "asyncio"), ("unittest", "logging"), ("statistics", "tarfile"))
SHORTEST = 30  # characters of a paragraph


def paragraphs(module: str) -> list[str]:
    """The paragraphs of a module's or a package's docstrings, each once."""
    home = Path(sysconfig.get_paths()["stdlib"])
    files = sorted((home / module).rglob("*.py")) or [home / f"{module}.py"]
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                pages = inspect.cleandoc(ast.get_docstring(node) or "")
                found += [" ".join(block.split()) for block in re.split(r"\n\s*\n", pages)]
    return [text for text in dict.fromkeys(found) if len(text) >= SHORTEST]


def rows(model: Model, name: str, about: Sequence[str], against: Sequence[str], count: int) -> None:
    """Print the best features of a pair of sets, and how good the best of the ranking half are on the other half."""
    found: Found = find(model, about, against, count=count, examples=3)
    for one, examples in zip(found.contrast.features, found.examples, strict=True):
        words = ", ".join(f"[{found.texts[e.text][e.begin : e.end]}]" for e in examples)
        low, high = one.interval
        shares = " / ".join(f"{share:.0%}" for share in one.density)
        sizes = " + ".join(map(str, found.contrast.measured_on))
        print(
            f"| {name} | {sizes} | {one.feature} | {one.more} | {one.ranked_auc:.2f} | **{one.auc:.2f}** "
            f"({low:.2f} to {high:.2f}) | {shares} | {one.d:+.2f} | {words} |",
            flush=True,
        )


@click.command()
@click.argument("model")
@click.option("--count", default=4, show_default=True, help="features of a pair")
def main(model: str, count: int) -> None:
    """Print a row for each of the best features of each pair. MODEL is a deployed model with one SAE."""
    opened = load_model(model)
    print("| about, against | held out | feature | more | AUC, ranking | AUC, held out | density | d | strongest at |")
    print("|---|---|---|---|---|---|---|---|---|")
    texts = {module: paragraphs(module) for pair in PAIRS for module in pair}
    for about, against in PAIRS:
        rows(opened, f"{about}, {against}", texts[about], texts[against], count)
    shuffled = random.Random(0).sample(texts["email"], len(texts["email"]))
    half = len(shuffled) // 2
    rows(opened, "email parted at random", shuffled[:half], shuffled[half:], count)


if __name__ == "__main__":
    main()
