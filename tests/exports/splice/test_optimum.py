"""Graphs as optimum-onnx exports them, against torch's hooks.

optimum-onnx needs an older transformers than the rest, so it has an environment of its own: `make optimum` makes it and
runs this module. Elsewhere SAE_RUNTIME_OPTIMUM_PYTHON names an interpreter that has it; without one, nothing runs here.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cases_common import jaccard, relative_error, true_features
from cases_hosts import dense, random_sae
from tiny_host import run

from sae_runtime.exports.splice.splicing import Splice, splice

PYTHON = os.environ.get("SAE_RUNTIME_OPTIMUM_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="SAE_RUNTIME_OPTIMUM_PYTHON names no interpreter")
D_IN, D_SAE = 32, 160
GRAPHS = ["bert/model", "gpt2/model", "llama/model", "vit/model", "t5/encoder_model", "t5/decoder_model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exports of all models, and what torch computes."""
    path = tmp_path_factory.mktemp("optimum")
    assert PYTHON is not None
    script = Path(__file__).parents[2] / "optimum_hosts.py"
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([PYTHON, script, path], check=True, capture_output=True, env=environment)
    return path


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_of_optimum_gives_torchs_features_and_takes_edits(folder: Path, tmp_path: Path, graph: str) -> None:
    host = folder / f"{graph}.onnx"
    truth = np.load(host.with_suffix(".npz"))
    feed = {name.removeprefix("feed."): truth[name] for name in truth.files if name.startswith("feed.")}
    weights = random_sae(tmp_path / "sae", D_IN, D_SAE)
    made = splice(host, [Splice(bundle=tmp_path / "sae", hook=str(truth["hook"]))], tmp_path / "out")
    assert made.warnings == ()
    output = str(truth["output"])
    found = run(made.path, feed | {"sae_slots": np.array([D_SAE])}, basic=True)
    np.testing.assert_array_equal(found[output], run(host, feed, basic=True)[output])
    assert relative_error(found[output], truth["plain"]) < 1e-5
    f = true_features(weights, truth["x"])
    assert (f > 0).any() and jaccard(dense(found, D_SAE), f) == 1
    assert relative_error(dense(found, D_SAE), f) < 1e-4
    edited = run(made.path, feed | {"sae_direction": truth["direction"]})[output]
    assert relative_error(edited, truth["edited"]) < 1e-5
    assert relative_error(truth["plain"], truth["edited"]) > 1e-3


def test_a_merged_decoder_of_optimum_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    random_sae(tmp_path / "sae", D_IN, D_SAE)
    merged = folder / "t5" / "decoder_model_merged.onnx"
    with pytest.raises(ValueError, match=r"merged decoder.*decoder_with_past_model\.onnx and decoder_model\.onnx"):
        splice(merged, [Splice(bundle=tmp_path / "sae", hook="decoder.block.0")], tmp_path / "out")
    assert {"decoder_model.onnx", "decoder_with_past_model.onnx"} <= {path.name for path in merged.parent.iterdir()}
