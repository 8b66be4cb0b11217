"""A checkpoint that lacks weights, or names them otherwise: transformers fills in random ones, so it is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from cases_common import all_rows, harvested, write_paragraphs
from safetensors.numpy import load_file, save_file

pytestmark = [pytest.mark.usefixtures("one_thread")]

Rename = Callable[[str], str | None]
SPOILED: dict[str, Rename] = {
    "a compiled model's prefix": lambda name: "_orig_mod." + name,
    "a wrapped model's prefix": lambda name: "module." + name,
    "the MLP of a layer is missing": lambda name: None if "h.0.mlp" in name else name,
}


def save_model(folder: Path, rename: Rename) -> Path:
    """A GPT-2 on disk whose weights have other names; those renamed to None are left out."""
    tiny_model.save_gpt2(folder)
    path = folder / "model.safetensors"
    named = {rename(name): tensor for name, tensor in load_file(str(path)).items()}
    kept = {name: tensor for name, tensor in named.items() if name is not None}
    save_file(kept, str(path), metadata={"format": "pt"})
    return folder


def test_a_whole_checkpoint_gives_the_same_rows_each_time(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", lambda name: name)
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2 w3 w4 w5"] * 3)
    first, second = (all_rows(harvested(model, "h.0", text, tmp_path / name, context=32)) for name in "ab")
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", SPOILED)
def test_a_checkpoint_that_lacks_weights_is_refused(name: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", SPOILED[name])
    text = write_paragraphs(tmp_path / "text.txt", ["w1 w2 w3 w4 w5"] * 3)
    with pytest.raises(ValueError, match=r"weight"):
        harvested(model, "h.0", text, tmp_path / "activations", context=32)
