"""docs/guides/text.md runs from top to bottom, with tiny models of its words."""

import csv
import json
from pathlib import Path

import pytest
from page_stages import lay, paragraphs
from walked_pages import walk


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    lay(tmp_path, my_model="encoder", my_sae="sae", language_model="language-model")
    files, others = paragraphs(["tarfile"]), paragraphs(["html", "json"])
    for name, texts in (("files", files), ("others", others), ("texts", [*files, *others])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    with (tmp_path / "data.csv").open("w") as table:
        rows = csv.writer(table)
        rows.writerow(["text", "topic"])
        rows.writerows([*((text, "files") for text in files), *((text, "others") for text in others)])
    pairs = [json.dumps({"question": one, "answer": other}) for one, other in zip(files, others, strict=False)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    return tmp_path


def test_the_page_runs(stage: Path) -> None:
    walk("docs/guides/text.md", stage)
