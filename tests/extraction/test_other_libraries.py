"""The lines of docs/guides/interop.md that read features: each is run as it stands, and gives what the SAE gave."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_x
from numpy.typing import NDArray

from sae_runtime import Features, load, open_activations
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import extract

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
DOCUMENT = Path(__file__).parents[2] / "docs" / "guides" / "interop.md"
ROWS = 90


def block(library: str) -> str:
    """The Python of the document that imports a library."""
    section = DOCUMENT.read_text().partition("## Features for other tools")[2]
    (found,) = [
        text for text in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if f"import {library}\n" in text
    ]
    return str(found)


@pytest.fixture
def made(bundle_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Features:
    """Features in the folder `features` of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "acts"
    folder.mkdir()
    ids = np.arange(ROWS, dtype=np.int32)
    tensors = {"activations": make_x(ROWS), "tokens": ids % 7, "documents": ids // 8, "positions": ids % 8}
    safetensors.numpy.save_file(tensors, folder / "x.safetensors")
    sae = load(bundle_of("mutual"))
    extract(
        ArraySource(sae, open_activations(folder / "x.safetensors"), part=40), tmp_path / "features", values="float32"
    )
    return sae.encode(make_x(ROWS))


def dense(indices: Any, values: Any) -> NDArray[np.float32]:
    made = np.zeros((ROWS, 150), np.float32)
    for row, (ids, numbers) in enumerate(zip(indices, values, strict=True)):
        made[row, np.asarray(ids, int)] = numbers
    return made


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb", "datasets"])
def test_other_libraries_read_the_files(library: str, made: Features, tmp_path: Path) -> None:
    module = pytest.importorskip(library)
    if library == "datasets":
        monkey = pytest.MonkeyPatch()
        monkey.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    *imports, _, line = block(library).strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(imports), names)
    read = eval(line, names)
    if library == "duckdb":
        columns = read.fetchnumpy()  # a join gives rows in any order
        order = np.lexsort((columns["pos"], columns["doc"]))
        indices, values = columns["indices"][order], columns["values"][order]
    else:
        indices, values = list(read["indices"]), list(read["values"])
    np.testing.assert_array_equal(dense(indices, values), made.to_dense())


def test_read_features_does_what_its_lines_say(made: Features) -> None:
    names: dict[str, Any] = {}
    exec(block("read_features"), names)
    np.testing.assert_array_equal(names["matrix"].toarray(), made.to_dense())
    assert len(names["features"]) == ROWS and len(names["table"]) == 8 and len(names["places"]) == 12
    assert max(names["most"]) == made.l0().max()
