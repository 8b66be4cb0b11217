import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import MANIFEST, BundleError

CopyOf = Callable[..., Path]
SPARSE = 100 << 30


def record(path: Path, name: str, part: str = "files", **fields: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    known = manifest[part].get(name, {"size": 0, "sha256": ""})
    manifest[part][name] = {**known, **fields}
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sample.safetensors", "files"),
        ("stats.safetensors", "files"),
        ("derived.safetensors", "files"),
        ("sae_weights.safetensors", "files"),
        ("cfg.json", "files"),
        ("encode.onnx", "graphs"),
        ("other.bin", "files"),
    ],
)
def test_a_file_of_a_hundred_gigabytes_is_refused_before_it_is_read(copy_of: CopyOf, name: str, part: str) -> None:
    path = copy_of("mutual", sampled=True)
    (path / name).touch()
    os.truncate(path / name, SPARSE)
    record(path, name, part, size=SPARSE)
    begin = time.process_time()
    with pytest.raises(BundleError, match=f"{MANIFEST}: {name} (cannot have 107,374,182,400 bytes|is listed)"):
        bundle.read(path)
    assert time.process_time() - begin < 5  # hashing takes a minute or more


def test_a_graph_that_reads_derived_weights_which_are_not_listed_is_refused(copy_of: CopyOf) -> None:
    path = copy_of("mutual")
    record(path, "encode.onnx", "graphs", derived=True)
    with pytest.raises(BundleError, match=r"encode.onnx reads derived.safetensors, which is not listed"):
        bundle.read(path)


def test_a_manifest_must_be_a_file_of_the_folder(copy_of: CopyOf, tmp_path: Path) -> None:
    path = copy_of("mutual")
    (path / MANIFEST).rename(tmp_path / "elsewhere.json")
    (path / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match="is a link out of its folder"):
        bundle.read(path)
    for make in (Path.mkdir, os.mkfifo):
        (path / MANIFEST).unlink()
        make(path / MANIFEST)
        with pytest.raises(BundleError, match="is a (pipe|folder), expected a file"):
            bundle.read(path)
        if make is Path.mkdir:
            (path / MANIFEST).rmdir()
            (path / MANIFEST).touch()
