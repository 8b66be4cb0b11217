"""The batch rule over parts gives the bits of `encode_batch` over all rows, whatever the parts are."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tied_x, make_x
from feature_folders import assert_same, read_tokens, stored, uneven

from sae_runtime import load
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.candidate_files import FOLDER
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.tasks import Task, local

BundleOf = Callable[..., Path]


@pytest.fixture(params=["mutual", "feature"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("kind", "part"), [("mutual", 16), ("feature", 16), ("mutual", 1000)])
def test_the_rows_are_those_of_encode_batch(bundle_of: BundleOf, tmp_path: Path, kind: str, part: int) -> None:
    x = uneven(60)
    sae = load(bundle_of(kind), threads=1)
    made = extract(
        ArraySource(sae, stored(tmp_path, x), part=part), tmp_path / "features", rule="batch", values="float32"
    )
    expected = sae.encode_batch(x)
    assert_same(read_tokens(tmp_path / "features", 150), expected)
    assert (made.matches, made.tokens) == (len(expected.values), len(x))
    assert json.loads((tmp_path / "features" / "features.json").read_text())["rule"] == "batch"
    assert not (tmp_path / "features" / FOLDER).exists()


def test_ties_go_to_the_first_token_and_feature(bundle_of: BundleOf, tmp_path: Path, kind: str) -> None:
    """In whole numbers nearly all candidates tie, and the parts share them by their order."""
    x, sae = make_tied_x(60), load(bundle_of(kind, tied=True), threads=1)
    extract(ArraySource(sae, stored(tmp_path, x), part=25), tmp_path / "features", rule="batch", values="float32")
    assert_same(read_tokens(tmp_path / "features", 150), sae.encode_batch(x))


def test_token_choice_is_the_served_rule(bundle_of: BundleOf, tmp_path: Path) -> None:
    x, sae = make_x(30), load(bundle_of("token"), threads=1)
    extract(ArraySource(sae, stored(tmp_path, x), part=7), tmp_path / "features", rule="batch", values="float32")
    assert_same(read_tokens(tmp_path / "features", 150), sae.encode(x))


def test_an_input_that_changed_between_the_passes_is_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = stored(tmp_path, uneven(50))
    source = ArraySource(load(bundle_of("mutual"), threads=1), path, part=16)

    def changing(task: Task, numbers: Sequence[int]) -> Iterator[int]:
        yield from local(task, numbers)
        x = uneven(50)
        x[40] += 1
        np.save(path, x)

    with pytest.raises(ValueError, match="rows 32 to 48 changed since the plan was made"):
        extract(source, tmp_path / "features", rule="batch", values="float32", engine=changing)
