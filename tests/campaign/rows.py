"""Strangers' activations: changed folders and files are refused in one sentence, or read as others read them."""

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from campaign.fuzzing import FAULT, fuzz
from campaign.mutations import apply
from campaign.mutations import draw as draw_changes
from sae_runtime import open_activations
from sae_runtime.cli.group import _ERRORS


def run(seconds: float, folder: Path, seed: int = 0, processes: int = 1) -> dict[str, int]:
    """Judge changed activations for this time."""
    return fuzz("rows", seconds, folder, seed, processes)


def prepare(home: Path) -> None:
    """Write a harvest, and the same rows as .npy."""
    from campaign.commands import INPUTS

    INPUTS["stored"](home)  # type: ignore[operator]
    (home / "array").mkdir()
    np.save(home / "array" / "x.npy", np.arange(240, dtype=np.float32).reshape(-1, 24))


def draw(rng: random.Random, home: Path) -> dict[str, Any]:
    """Activations, and changes of their files."""
    kind = rng.choice(("stored", "stored", "array"))
    return {"kind": kind, "changes": draw_changes(rng, home / kind)}


def judge(given: dict[str, Any], home: Path) -> str:
    """The outcome of activations with these changes."""
    path = home / "changed"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    shutil.copytree(home / given["kind"], path)
    apply(path, given["changes"])
    try:
        activations = open_activations(path)
        rows = activations.rows(np.arange(len(activations)))
    except _ERRORS:
        return "refused"
    if given["kind"] == "array":
        expected = np.load(path / "x.npy")
    else:
        shards = json.loads((path / "activations.json").read_text())["shards"]
        expected = np.concatenate([load_file(path / shard["file"])["activations"] for shard in shards])
    same = rows.shape == expected.shape and np.array_equal(rows, expected.astype(np.float32), equal_nan=True)
    return "right" if same else f"{FAULT}other rows than the file's"
