"""docs/guides/corpus.md runs from top to bottom, with a tiny model and texts of Python's documentation."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from page_stages import lay, paragraphs
from walked_pages import walk


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    lay(tmp_path, my_model="encoder", my_sae="sae")
    (tmp_path / "data").mkdir()
    for number, module in enumerate(("tarfile", "csv")):
        texts = paragraphs([module])
        table = pyarrow.table({"text": texts, "topic": [module] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{number}.parquet")
    labels = [{"feature": number, "label": f"label {number}"} for number in range(20)]
    (tmp_path / "explanations.jsonl").write_text("\n".join(map(json.dumps, labels)))
    return tmp_path


def test_the_page_runs(stage: Path) -> None:
    walk("docs/guides/corpus.md", stage)
