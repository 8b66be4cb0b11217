"""A harvest that goes on after it was killed must not mix the rows of two models that were filled in at random."""

from pathlib import Path

import numpy as np
import pytest
import tiny_model
from cases_common import Rows, all_rows, harvested, write_paragraphs
from safetensors.numpy import load_file, save_file

from sae_runtime.activations.stored import INDEX

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCE = "w1 w2 w3 w4 w5"


def resumed_rows(folder: Path, prefix: str) -> Rows:
    """Rows of the same sentence 40 times, whose harvest was killed halfway and went on; weights get a prefix."""
    model = tiny_model.save_gpt2(folder / "model")
    path = model / "model.safetensors"
    named = {prefix + name: tensor for name, tensor in load_file(str(path)).items()}
    save_file(named, str(path), metadata={"format": "pt"})
    text = write_paragraphs(folder / "text.txt", [SENTENCE] * 40)
    out = folder / "activations"
    shards = len(harvested(model, "h.0", text, out, context=32, shard_tokens=50).shards)
    (out / INDEX).unlink()
    for number in range(shards // 2, shards):
        (out / f"shard-{number:05d}.safetensors").unlink()
    return all_rows(harvested(model, "h.0", text, out, context=32, shard_tokens=50))


def test_a_whole_model_gives_equal_rows_before_and_after_a_kill(tmp_path: Path) -> None:
    x = resumed_rows(tmp_path, "")
    assert np.abs(x[:5] - x[-5:]).max() < 1e-5


def test_a_model_that_lacks_weights_is_refused_or_gives_equal_rows(tmp_path: Path) -> None:
    try:
        x = resumed_rows(tmp_path, "_orig_mod.")
    except ValueError:
        return
    assert np.abs(x[:5] - x[-5:]).max() < 1e-5


def test_a_model_of_the_hub_that_has_a_new_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--someone--tiny"
    text = write_paragraphs(tmp_path / "text.txt", [SENTENCE] * 4)
    (cached / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        tiny_model.save_gpt2(cached / "snapshots" / commit)
    (cached / "refs" / "main").write_text("a" * 40)
    out = tmp_path / "activations"
    harvested("someone/tiny", "h.0", text, out, context=32)
    (out / INDEX).unlink()
    harvested("someone/tiny", "h.0", text, out, context=32)
    (out / INDEX).unlink()
    (cached / "refs" / "main").write_text("b" * 40)
    with pytest.raises(ValueError, match="was begun with model_commit 'aaaa"):
        harvested("someone/tiny", "h.0", text, out, context=32)
