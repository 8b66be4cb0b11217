"""docs/guides/interop.md runs, with a small SAE of SAELens and a tiny deployed model."""

import json
from collections.abc import Callable
from pathlib import Path

import foreign_saes.sae_lens
import numpy as np
import pytest
from conftest import D_IN, make_x
from deployed_model import D_SAE, deploy, some_texts
from walked_pages import walk

pytestmark = pytest.mark.filterwarnings("ignore")  # SAELens's own
# dictionary_learning imports it for buffers of activations, and the development set has none.
STAND_IN = "class LanguageModel: ...\n"


@pytest.fixture
def stage(tmp_path: Path, bundle_of: Callable[..., Path]) -> Path:
    """A checkpoint, activations, explanations, a deployed model and texts, as the page names them."""
    foreign_saes.sae_lens.make("JumpReLUSAE", d_in=D_IN, d_sae=D_SAE).save_model(tmp_path / "their-sae")
    np.save(tmp_path / "acts.npy", make_x(2_000))
    rows = [{"modelId": "tiny", "layer": "1-res", "index": "12", "description": "include"}]
    (tmp_path / "explanations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual", D_SAE, 16)})
    texts = [{"id": f"t{number}", "text": text} for number, text in enumerate(some_texts(20, 12))]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (tmp_path / "nnsight.py").write_text(STAND_IN)
    return tmp_path


def test_the_guide_runs(stage: Path) -> None:
    walk(  # all but polars, which not every developer has
        "docs/guides/interop.md",
        stage,
        headings=(
            "SAEs of other libraries",
            "Back to other libraries",
            "Arrays of other libraries",
            "Labels of features",
            "Extract",
            "numpy and scipy",
            "pandas",
            "DuckDB",
            "datasets",
            "delphi",
        ),
        environment={"HF_DATASETS_CACHE": str(stage / "cache")},
    )
    assert '"label":"include"' in (stage / "my-sae" / "labels.jsonl").read_text().replace(" ", "")


def test_polars_reads_the_features(stage: Path) -> None:
    pytest.importorskip("polars")
    walk("docs/guides/interop.md", stage, headings=("Extract", "polars"))
