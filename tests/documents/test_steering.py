"""docs/guides/steering.md runs from top to bottom: with tiny models of its words, and the example with a real one."""

from pathlib import Path

from page_stages import lay
from walked_pages import walk


def test_the_page_runs(tmp_path: Path) -> None:
    lay(
        tmp_path, my_model="encoder", my_sae="sae", my_writer="writer", writer_sae="writer-sae", writer="language-model"
    )
    walk(
        "docs/guides/steering.md",
        tmp_path,
        headings=[
            "From a model to a steered text",
            "Where the SAE goes",
            "Edits",
            "The graph",
            "Chosen tokens",
            "Generating",
            "Live torch models",
        ],
    )


def test_the_worked_example_runs(tmp_path: Path) -> None:
    walk(
        "docs/guides/steering.md", tmp_path, headings=["A worked example"], timeout=1800
    )  # two minutes of one processor
