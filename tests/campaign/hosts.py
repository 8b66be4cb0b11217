"""Strangers' host models: a graph or its weights changed, then spliced, inspected, and tried by `doctor`.

A command refuses one with one sentence, or the spliced model gives the outputs that the changed host gives.
"""

import contextlib
import io
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from campaign.fuzzing import FAULT, fuzz
from campaign.mutations import apply
from campaign.mutations import draw as draw_changes
from sae_runtime.cli import main
from sae_runtime.cli.group import Failure

IDS = np.array([[1, 5, 2], [7, 0, 3]])


def run(seconds: float, folder: Path, seed: int = 0, processes: int = 1) -> dict[str, int]:
    """Judge changed hosts for this time."""
    return fuzz("hosts", seconds, folder, seed, processes)


def prepare(home: Path) -> None:
    """Write a host, one with its weights in a file, one that is spliced already, and the bundle to put in."""
    from made_hosts import host

    from campaign.commands import INPUTS

    host(home / "plain" / "host.onnx")
    host(home / "outside" / "host.onnx", external="host.data", opset=17)
    INPUTS["served"](home)  # type: ignore[operator]
    assert _said(*_splice(home / "plain", home, "layer.0", home / "spliced" / "host.onnx")) == "done"


def draw(rng: random.Random, home: Path) -> dict[str, Any]:
    """A host, and changes of its files."""
    kind = rng.choice(("plain", "outside", "spliced"))
    return {"kind": kind, "changes": draw_changes(rng, home / kind)}


def judge(given: dict[str, Any], home: Path) -> str:
    """The outcome of a host with these changes."""
    path = home / "changed"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    shutil.copytree(home / given["kind"], path, copy_function=os.link)
    apply(path, given["changes"])
    for command in ("inspect", "doctor"):
        said = _said(command, str(path / "host.onnx"))
        if said.startswith(FAULT):
            return said
    hook = "layer.1" if given["kind"] == "spliced" else "layer.0"
    said = _said(*_splice(path, home, hook, path / "out.onnx"))
    if said != "done":
        return said
    expected = _outputs(path / "host.onnx")
    if expected is None:
        return "spliced, and no host to compare with"
    actual = _outputs(path / "out.onnx")
    if actual is None:
        return f"{FAULT}the spliced model does not run, and the host does"
    same = np.allclose(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    return "same" if same else f"{FAULT}the spliced model gives other outputs than its host"


def _splice(folder: Path, home: Path, hook: str, out: Path) -> list[str]:
    name = "sae" if hook == "layer.0" else "other"
    command = ["splice", str(folder / "host.onnx"), "--sae", str(home / "served"), "--hook", hook, "--name", name]
    return [*command, "-o", str(out)]


def _said(*arguments: str) -> str:
    """What a command comes to: done, refused, or a fault of its words."""
    said = io.StringIO()
    outcome = "done"
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main.main(list(arguments), standalone_mode=False)
    except (Failure, SystemExit) as error:
        outcome = "refused"
        with contextlib.redirect_stderr(said):
            getattr(error, "show", str)()  # as the terminal gets it
        if "\n" in str(getattr(error, "message", "")).strip():
            outcome = f"{FAULT}{arguments[0]} says several lines"
    odd = [c for c in said.getvalue() if not (c.isprintable() or c == "\n")]
    return f"{FAULT}{arguments[0]} prints {odd[0]!r}" if odd else outcome


def _outputs(path: Path) -> Any:
    """The first output of a model, or None where onnxruntime refuses it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session.run([session.get_outputs()[0].name], {"ids": IDS})[0]
    except Exception:
        return None
