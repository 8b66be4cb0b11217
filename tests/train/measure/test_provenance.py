from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_manifest, make_x

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.train.held_out import split
from sae_runtime.train.measure.provenance import trained_batch, trained_tokens, validation_rows, was_trained_on
from sae_runtime.train.stored_rows import StoredRows


def activations(n: int = 500, seed: int = 1, name: str = "x.npy") -> Activations:
    return Activations(Path(name), [Shard(make_x(n, seed))])


def manifest(**changes: Any) -> Manifest:
    source = StoredRows(activations(), split(activations(), 0.2, 5), 10**6)
    config = {"holdout": 0.2, "seed": 5, "batch": 60, "tokens": 900}
    return replace(make_manifest(30, "token"), provenance={**source.provenance, "config": config, **changes})


def test_was_trained_on_knows_activations_by_their_contents() -> None:
    assert was_trained_on(manifest(), activations()) and was_trained_on(manifest(), activations(name="renamed.npy"))
    assert not was_trained_on(manifest(), activations(seed=2))


def test_was_trained_on_without_a_fingerprint_compares_the_name() -> None:
    old = manifest(fingerprint=None)
    assert was_trained_on(old, activations()) and was_trained_on(old, activations(seed=2))
    assert not was_trained_on(old, activations(name="renamed.npy"))


def test_validation_rows_are_those_of_the_split() -> None:
    rows = validation_rows(manifest(), activations())
    assert rows is not None and np.array_equal(rows, split(activations(), 0.2, 5).validation)
    assert validation_rows(manifest(), activations(499)) is None
    assert validation_rows(manifest(rows={"train": 450, "calibration": 25, "validation": 25}), activations()) is None


@pytest.mark.parametrize("provenance", [{}, {"config": 3, "rows": 4}, {"config": {"seed": 0}, "rows": {"train": 500}}])
def test_a_manifest_of_another_program_gives_no_provenance(provenance: dict[str, Any]) -> None:
    other = replace(manifest(), provenance=provenance)
    assert not was_trained_on(other, activations())
    assert validation_rows(other, activations()) is None
    assert (trained_batch(other), trained_batch(manifest())) == (2048, 60)
    assert (trained_tokens(other), trained_tokens(manifest())) == (None, 900)
