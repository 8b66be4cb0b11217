"""Features of text are those of harvested activations: the same tokens in the same windows, encoded by the bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import deploy
from tiny_host import HOOKS, torch_host
from tiny_model import write_words

from sae_runtime import load, load_model, open_activations
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("host", ["bert", "gpt2"])
@pytest.mark.parametrize("context", [9, 64])
def test_the_features_of_a_file_are_those_of_its_harvest(
    tmp_path: Path, copy_of: Callable[..., Path], host: str, context: int
) -> None:
    folder = deploy(tmp_path / "model", host, {"bundle": copy_of("mutual")})
    torch_host(host).save_pretrained(folder)
    text = write_words(tmp_path / "words.txt", 30)
    sizes: dict[str, Any] = {"context": context, "batch_tokens": 4 * context, "dtype": "float32"}
    harvest(HarvestConfig(model=str(folder), hook=HOOKS[host], text=(text,), **sizes), tmp_path / "acts")
    stored = open_activations(tmp_path / "acts")
    expected = load(folder / "sae").encode(stored.rows(np.arange(len(stored))))
    seen = load_model(folder, threads=1).features(text.read_text().split("\n\n"), context=context)
    own = [np.flatnonzero(~one.special) for one in seen]
    features = np.concatenate([one.features.take(rows).to_dense() for one, rows in zip(seen, own, strict=True)])
    assert np.abs(features - expected.to_dense()).max() <= 1e-5 * features.max()
    ids = np.concatenate([one.ids[rows] for one, rows in zip(seen, own, strict=True)])
    assert ids.tolist() == np.asarray(stored.tokens).tolist()
