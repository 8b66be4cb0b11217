"""The table docs/results/where_it_runs.md: every graph under every runtime that is here; `make runtimes` brings them.

.venv/bin/python -m pytest -q tests/exports/test_where_it_runs.py       # compares the table with what it sees
WRITE=1 .venv/bin/python -m pytest -q tests/exports/test_where_it_runs.py       # writes the table
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_host
from conftest import D_IN, make_manifest, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.exports.export import export
from sae_runtime.exports.graphs.external import without_defaults
from sae_runtime.exports.splice.splicing import Splice, splice

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "results" / "where_it_runs.md"
RUNNERS = ROOT / "tests" / "runtimes"
WEB = ROOT / ".venv" / "onnxruntime-web" / "node_modules" / "onnxruntime-web"
D_SAE = 512  # the smallest that has encode_exact.onnx
NEAR = 2e-6  # of the largest value of the output
FEATURES, FEW = np.array([[1, 5, 7], [3, 2, 9]]), (2, 3)
Feed = dict[str, NDArray[Any]]
Cell = tuple[str, str]  # "equal" or "refused", and details for the reader

EDITS: Feed = {
    "features": FEATURES,
    "scale": np.full(FEW, 0.5, np.float32),
    "shift": np.ones(FEW, np.float32),
    "low": np.full(FEW, -1e30, np.float32),
    "high": np.full(FEW, 1e30, np.float32),
    "gate": np.array([[[1.0]], [[0.25]]], np.float32),
}
NO_EDITS: Feed = {"features": np.empty((1, 0), np.int64)} | {
    name: np.ones((1,) * array.ndim, array.dtype) for name, array in EDITS.items() if name != "features"
}
# A condition that always holds, since no activation is below 0.
ASKED: Feed = {
    "direction": np.full((1, 1, D_IN), 0.1, np.float32),
    "when": np.array([[0]]),
    "above": np.array([[-1.0]], np.float32),
    "slots": np.array([5]),
}


def _command(runtime: str) -> tuple[list[str], dict[str, str]] | None:
    """What runs a runtime, and its environment; None where it is not here."""
    venv, python = ROOT / ".venv", [sys.executable, str(RUNNERS / "run.py")]
    if runtime == "onnxruntime-web":
        node = shutil.which("node")
        return ([node, str(RUNNERS / "run.mjs"), str(WEB)], {}) if node and WEB.is_dir() else None
    folder = {"onnxruntime, oldest": "oldest", "OpenVINO": "openvino"}.get(runtime)
    if folder and not (venv / folder).is_dir():
        return None
    name = {"OpenVINO": "openvino", "onnx.reference": "reference"}.get(runtime, "onnxruntime")
    return [*python, name], {"PYTHONPATH": str(venv / folder)} if folder else {}


RUNTIMES = ("onnxruntime", "onnxruntime, oldest", "OpenVINO", "onnxruntime-web", "onnx.reference")


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    found = {"onnxruntime": onnxruntime.__version__, "onnx.reference": onnx.__version__}
    for name, pattern in {"onnxruntime, oldest": "oldest/onnxruntime-*", "OpenVINO": "openvino/openvino-2*"}.items():
        for path in (ROOT / ".venv").glob(f"{pattern}.dist-info"):
            found[name] = path.stem.split("-")[1]
    if WEB.is_dir():
        found["onnxruntime-web"] = json.loads((WEB / "package.json").read_text())["version"]
    return found


def _variants() -> dict[str, Manifest]:
    """An SAE for each kind of graph: allocations, groups and norms."""
    token, mutual, feature = (make_manifest(D_SAE, kind) for kind in ("token", "mutual", "feature"))
    architecture = dataclasses.replace(token.architecture, selection="groupmax", k=8)
    group = dataclasses.replace(token, architecture=architecture, allocation=None, slots=8)
    normed = {
        norm: dataclasses.replace(mutual, architecture=dataclasses.replace(mutual.architecture, norm=norm))
        for norm in ("layer", "length")
    }
    return {"token": token, "mutual": mutual, "feature": feature, "groupmax": group, **normed}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Path, Feed]]]:
    """The rows of the table: graphs and what they are fed."""
    home, paths = tmp_path_factory.mktemp("runs"), {}
    for name, manifest in _variants().items():
        paths[name] = home / name
        weights = make_weights(D_SAE, "token" if name in ("token", "groupmax") else "mutual")
        if name in ("layer", "length"):
            weights["threshold"] *= 0.2
        bundle.write(paths[name], weights, manifest)
        export(paths[name], graphs=("gpu",) if name == "groupmax" else ("exact", "gpu"))
        for graph in ("encode", "steer"):
            without_defaults(paths[name] / f"{graph}.onnx", paths[name] / f"{graph}_required.onnx")
    x = {"x": make_x(7)}
    batch, indices = {"x": make_x(6).reshape(2, 3, D_IN)}, np.random.default_rng(0).integers(0, D_SAE, (7, 4))
    sparse: Feed = {"indices": indices, "values": np.random.default_rng(1).gamma(2, 1, (7, 4)).astype(np.float32)}

    def each(graph: str, feed: Feed, names: tuple[str, ...] = tuple(paths)) -> list[tuple[Path, Feed]]:
        found = [paths[name] / graph for name in names]
        return [(path, feed) for path in found if path.exists()]

    by_threshold: Feed = {**x, "slots": np.array([9]), "threshold": np.array([1.5], np.float32)}
    thresholds = ("mutual", "feature", "layer", "length")
    host, hook = tiny_host.host_graph("bert"), tiny_host.HOOKS["bert"]
    text = tiny_host.some_ids(2, 6)
    types = {"token_type_ids": np.zeros((2, 6), np.int64)}  # they have a default too, which is taken away
    with_edits: Feed = {**text, **types, **{f"sae_{name}": array for name, array in (EDITS | ASKED).items()}}
    plain: list[tuple[Path, Feed]] = []
    required: list[tuple[Path, Feed]] = []
    for name, path in paths.items():
        for wanted, calls in ((False, plain), (True, required)):
            folder = home / f"spliced-{name}-{wanted}"
            made = splice(host, [Splice(bundle=path, hook=hook, required=wanted)], folder).path
            if wanted:
                without_defaults(made, made)
            calls.append((made, with_edits if wanted else text))
    norms = ("layer", "length")
    return {
        "encode.onnx": each("encode.onnx", x),
        "encode.onnx, slots and threshold given": each("encode.onnx", by_threshold, thresholds),
        "encode.onnx without defaults": each("encode_required.onnx", by_threshold, thresholds),
        "encode_exact.onnx": each("encode_exact.onnx", x),
        "encode_gpu.onnx, on the CPU": each("encode_gpu.onnx", x),
        "encode_joint.onnx": each("encode_joint.onnx", x),
        "decode.onnx": each("decode.onnx", sparse, ("token", "mutual", "groupmax"))
        + each("decode.onnx", {**sparse, **x}, norms),
        "steer.onnx": each("steer.onnx", {**batch, **EDITS}),
        "steer.onnx without defaults": each("steer_required.onnx", {**batch, **EDITS})
        + each("steer_required.onnx", {**batch, **NO_EDITS}),
        "a host model alone": [(host, text)],
        "spliced model": plain,
        "spliced model, --required": required,
    }


def _ask(runtime: str, calls: Mapping[str, tuple[Path, Feed]]) -> dict[str, Any]:
    found = _command(runtime)
    if found is None:
        pytest.skip(f"{runtime} is not here; run: make runtimes")
    told = {
        name: {"graph": str(path), "feed": {k: [v.dtype.name, list(v.shape), v.ravel().tolist()] for k, v in f.items()}}
        for name, (path, f) in calls.items()
    }
    command, variables = found
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, input=json.dumps(told), capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answers


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference of two answers, of the largest value of an output; features must be the same."""
    assert found.keys() == expected.keys()
    worst = 0.0
    used: dict[str, NDArray[np.bool_]] = {}
    outputs = {name: [np.array(one[name][1], np.float64) for one in (found, expected)] for name in expected}
    for name in expected:
        assert found[name][0] == expected[name][0], name  # shapes
        if name.endswith("values"):
            used[name.replace("values", "indices")] = outputs[name][1] > 0
    for name, (a, b) in outputs.items():
        if name.endswith("indices"):  # of an unused slot they mean nothing
            np.testing.assert_array_equal(a[used[name]], b[used[name]])
        elif b.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return worst


def _cells(runtime: str, rows: Mapping[str, list[tuple[Path, Feed]]], truth: Mapping[str, Any]) -> dict[str, Cell]:
    calls = {f"{row}/{number}": call for row, several in rows.items() for number, call in enumerate(several)}
    answers = _ask(runtime, calls)
    cells: dict[str, Cell] = {}
    for row, several in rows.items():
        own = [answers[f"{row}/{number}"] for number in range(len(several))]
        refusals = [one["refused"] for one in own if "refused" in one]
        if refusals:
            share = "" if len(refusals) == len(own) else f"{len(refusals)} of {len(own)} "
            cells[row] = ("refused", f"{share}refused: {_short(refusals[0])}")
            continue
        worst = max(_difference(one["outputs"], truth[f"{row}/{number}"]) for number, one in enumerate(own))
        assert worst <= NEAR, (runtime, row, worst)
        cells[row] = ("equal", "equal bits" if worst == 0 else f"within {NEAR:g}")
    return cells


def _short(reason: str) -> str:
    """The part of a runtime's message that says what it lacks."""
    if "rank range" in reason:
        return "it reads a default of size 0 as a scalar"
    if "at most 64 array objects" in reason:
        return "its GatherElements takes 64 columns at most"
    return re.sub(r"[|\n]", " ", reason)[-120:]


@pytest.fixture(scope="module")
def truth(rows: Mapping[str, list[tuple[Path, Feed]]]) -> dict[str, Any]:
    """What onnxruntime gives, which other tests compare with numpy."""
    calls = {f"{row}/{number}": call for row, several in rows.items() for number, call in enumerate(several)}
    answers = _ask("onnxruntime", calls)
    assert not [one for one in answers.values() if "refused" in one]
    return {name: one["outputs"] for name, one in answers.items()}


def _table(text: str) -> dict[str, dict[str, str]]:
    """The cells of the table by runtime and row."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = [re.sub(r" [\d.]+$", "", cell) for cell in lines[0]]
    return {name: {line[0]: line[i] for line in lines[1:]} for i, name in enumerate(names) if i}


@pytest.mark.skipif("WRITE" in os.environ, reason="the table is being written")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_table_says_what_each_runtime_does(
    rows: dict[str, list[tuple[Path, Feed]]], truth: dict[str, Any], runtime: str
) -> None:
    told = _table(TABLE.read_text())[runtime]
    seen = _cells(runtime, rows, truth)
    assert {row: "refused" in cell for row, cell in told.items()} == {
        row: kind == "refused" for row, (kind, _) in seen.items()
    }


@pytest.mark.skipif("WRITE" not in os.environ, reason="WRITE=1 writes the table")
def test_write_the_table(rows: dict[str, list[tuple[Path, Feed]]], truth: dict[str, Any]) -> None:
    versions, seen = _versions(), {runtime: _cells(runtime, rows, truth) for runtime in RUNTIMES}
    head = ["graph", *(f"{runtime} {versions[runtime]}" for runtime in RUNTIMES)]
    lines = [head, *([row, *(seen[one][row][1] for one in RUNTIMES)] for row in rows)]
    told = [f"| {' | '.join(line)} |" for line in lines]
    table = "\n".join([told[0], "|---" * len(head) + "|", *told[1:]])
    text = TABLE.read_text()
    begin, end = text.index("| graph |"), text.index("\n\n", text.index("| graph |"))
    TABLE.write_text(text[:begin] + table + text[end:])
