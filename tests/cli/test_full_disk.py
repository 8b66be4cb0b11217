"""A disk that is full, as the kernel's limit on the size of files is, ends every command in a line with a path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from conftest import make_x, no_file_beyond

from sae_runtime.bundle.tensors import save_tensors

BundleOf = Callable[..., Path]
SHORT = 600  # bytes; less than any output has

WRITERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "features": ("extract", ("{bundle}", "--activations", "{x}", "-o", "{out}", "-q")),
    "delphi": (
        "extract",
        ("{bundle}", "--activations", "{x}", "-o", "{out}", "--format", "delphi", "--sequence", "50", "-q"),
    ),
    "s.npy": ("steer", ("{bundle}", "--activations", "{x}", "--set", "3=1", "-o", "{out}", "-q")),
    "s.safetensors": ("steer", ("{bundle}", "--activations", "{x}", "--set", "3=1", "-o", "{out}", "-q")),
    "e.json": ("evaluate", ("{bundle}", "--activations", "{x}", "-o", "{out}", "-q")),
    "cal": ("calibrate", ("{bundle}", "--activations", "{x}", "-o", "{out}", "-q")),
    "made": ("convert", ("{theirs}", "-o", "{out}")),
    "r.html": ("report", ("{evaluation}", "-o", "{out}")),
}


@pytest.fixture(scope="module")
def inputs(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    bundle, numbers = bundle_of("mutual"), np.arange(300, dtype=np.int32)
    known = {"tokens": numbers, "documents": numbers // 20, "positions": numbers % 20}
    (folder / "acts").mkdir()
    save_tensors(folder / "acts" / "shard-00000.safetensors", {"activations": make_x(300), **known})
    index = {"format_version": 1, "d_in": 24, "model": "gpt2", "hook": "h.1", "context": 20}
    shards = [{"file": "shard-00000.safetensors", "rows": 300}]
    (folder / "acts" / "activations.json").write_text(json.dumps({**index, "shards": shards}))
    (folder / "theirs").mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(bundle / name, folder / "theirs")
    run("evaluate", bundle, "--activations", folder / "acts", "-o", folder / "e.json", "-q")
    paths = {"bundle": bundle, "x": folder / "acts", "theirs": folder / "theirs", "evaluation": folder / "e.json"}
    return {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize("output", WRITERS)
def test_a_full_disk_is_named_by_what_could_not_be_written(tmp_path: Path, inputs: dict[str, str], output: str) -> None:
    command, arguments = WRITERS[output]
    given = [argument.format(out=tmp_path / output, **inputs) for argument in arguments]
    with no_file_beyond(SHORT):
        said = refused(command, *given)
    assert said.startswith(f"error: {tmp_path / output}")
    assert "too large" in said or "cannot be written" in said
    assert ".partial" not in said
    assert not list(tmp_path.iterdir())
