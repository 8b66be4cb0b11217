"""docs/reference/bundle.md runs, and its tables name every file and tensor of a fresh bundle."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_manifest, make_weights, make_x
from documents import table
from walked_pages import walk

from sae_runtime.bundle import folder
from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.stats import counted
from sae_runtime.bundle.tensors import read_header
from sae_runtime.exports import export

PAGE = "reference/bundle.md"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with every file that one may have."""
    path = tmp_path / "my-sae"
    stats = counted(np.ones(512, np.int64), np.ones(512), 10)
    weights, manifest = make_weights(512, "feature"), make_manifest(512, "feature")
    folder.write(path, weights, manifest, sample=make_x(300), stats=stats, licence=b"MIT License")
    export(path, graphs=("exact", "gpu"))
    write_labels(path, {12: "files"})
    return path


def test_the_page_runs(bundle: Path) -> None:
    walk(f"docs/{PAGE}", bundle.parent)


def test_the_table_names_every_file_of_a_bundle(bundle: Path) -> None:
    named = [re.findall(r"`([\w.-]+)`", row[0]) for row in table(PAGE, "file")]
    assert sorted(name for row in named for name in row) == sorted(path.name for path in bundle.iterdir())


def test_what_may_be_edited_or_deleted_may_be(bundle: Path, bundle_of: Callable[..., Path]) -> None:
    rows = {row[0].strip("`"): row[3] for row in table(PAGE, "file")}
    for name in (name for name, may in rows.items() if "delete" in may):
        (bundle / name).unlink()
        assert folder.read(bundle).manifest.architecture.d_sae == 512
    for name in (name for name, may in rows.items() if "edit" in may):
        (bundle / name).write_text("" if name == "labels.jsonl" else "edited")
        assert folder.read(bundle).manifest.architecture.d_sae == 512
    listed = folder.read(bundle).manifest
    assert {name for name, may in rows.items() if may == "no"} == {
        *(listed.files.keys() | listed.graphs.keys()) - {"derived.safetensors"},
        "sae_runtime.json",
    }


def test_the_tables_of_tensors_have_names_types_and_shapes(bundle: Path) -> None:
    weights = {row[0].strip("`"): row[1] for row in table(PAGE, "tensor")}
    sizes = {"d_in": 24, "d_sae": 512, "d_out": 24}

    def shape(text: str) -> tuple[int, ...]:
        return tuple(sizes[one] if one in sizes else int(one) for one in re.findall(r"\w+", text))

    for name, spec in read_header(bundle / "sae_weights.safetensors").items():
        assert spec.dtype == "F32" and spec.shape == shape(weights[name])
    assert set(weights) == {*read_header(bundle / "sae_weights.safetensors"), "W_skip"}
    rows = {name: row[1] for row in table(PAGE, "tensor of `stats.safetensors`") for name in re.findall(r"\w+", row[0])}
    for name, spec in read_header(bundle / "stats.safetensors").items():
        dtype, _, text = rows[name].partition(" ")
        assert (spec.dtype, spec.shape) == (dtype, shape(text))


def test_the_table_of_the_manifest_has_all_its_fields() -> None:
    named = {name for row in table(PAGE, "field") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(Manifest.__dataclass_fields__)
