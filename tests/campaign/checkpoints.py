"""Strangers' checkpoints in every container: a damaged one is refused in one sentence, or becomes a whole bundle.

tests/checkpoints/test_corruption.py compares what becomes of them with their own libraries; this part looks for
crashes, hangs, memory and words, many times faster.
"""

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from corruption import spoil

from campaign.fuzzing import fuzz
from campaign.mutations import apply
from campaign.mutations import draw as draw_changes
from sae_runtime.bundle import folder as bundle
from sae_runtime.checkpoints.convert import convert
from sae_runtime.cli.group import _ERRORS


def run(seconds: float, folder: Path, seed: int = 0, processes: int = 1) -> dict[str, int]:
    """Judge damaged checkpoints for this time."""
    return fuzz("checkpoints", seconds, folder, seed, processes)


def prepare(home: Path) -> None:
    """Write a checkpoint as safetensors, as a torch archive and as .npz."""
    import numpy as np
    import torch
    from conftest import make_weights

    from campaign.commands import INPUTS

    INPUTS["checkpoint"](home)  # type: ignore[operator]
    weights = make_weights(64, "mutual")
    tensors = {"encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"], "b_dec": weights["b_dec"]}
    tensors |= {"decoder.weight": weights["W_dec"].T, "k": np.array(6), "threshold": np.array(2.0, np.float32)}
    (home / "torch").mkdir()
    torch.save({name: torch.tensor(np.array(array)) for name, array in tensors.items()}, home / "torch" / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": 24, "dict_size": 64, "k": 6, "lm_name": "m", "layer": 1}
    (home / "torch" / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    folder = home / "npz" / "layer_3" / "width_16k" / "average_l0_50"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **dict(weights))  # type: ignore[arg-type]  # its stub takes them for flags


def draw(rng: random.Random, home: Path) -> dict[str, Any]:
    """A checkpoint, and the seed of its damage or changes of its files."""
    kind = rng.choice(("checkpoint", "torch", "npz"))
    if kind == "checkpoint" or rng.random() < 0.2:
        return {"kind": kind, "changes": draw_changes(rng, home / kind)}
    return {"kind": kind, "spoilt": rng.randrange(2**31)}


def judge(given: dict[str, Any], home: Path) -> str:
    """The outcome of a checkpoint with this damage."""
    path = home / "changed"
    for folder in (path, home / "made"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    shutil.copytree(home / given["kind"], path)
    if "spoilt" in given:
        spoil(path, given["spoilt"])
    else:
        apply(path, given["changes"])
    inner = path / "layer_3" / "width_16k" / "average_l0_50"
    try:
        convert(inner if inner.exists() else path, home / "made")
    except _ERRORS:
        return "refused"
    bundle.read(home / "made", calibrated=False)
    return "converted"
