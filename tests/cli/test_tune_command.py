import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import misused, refused, run

from sae_runtime import tune as module
from sae_runtime.tune import ROWS

BundleOf = Callable[..., Path]
EXACT, PLAIN = "encode_exact.onnx", "encode.onnx"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the test's own; timings are given, not taken."""
    times = {PLAIN: (0.001, 0.002, 0.02, 0.1), EXACT: (0.0005, 0.004, 0.01, 0.0505)}
    monkeypatch.setenv("SAE_RUNTIME_TUNED", str(tmp_path / "tuned.json"))
    monkeypatch.setattr(module, "timed", lambda runs, sample, clock: {name: times[name] for name in runs})
    return tmp_path / "tuned.json"


def test_text(bundle_of: BundleOf, place: Path) -> None:
    result = run("tune", bundle_of("mutual", 512, sampled=True), "--threads", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["times", "tokens", "1", "16", "256", "1,024"],
        [PLAIN, "1", "ms", "2", "ms", "20", "ms", "100", "ms", "in", "all", "6.98"],
        [EXACT, "0.5", "ms", "4", "ms", "10", "ms", "50.5", "ms", "in", "all", "5.00"],
        f"exact {EXACT}, with 3 threads; noted in {place}".split(),
    ]


def test_json(bundle_of: BundleOf, place: Path) -> None:
    path = bundle_of("mutual", 512, sampled=True)
    found = json.loads(run("tune", path, "--threads", "1", "--json").stdout)
    assert found["totals"].keys() == found["seconds"].keys() == {PLAIN, EXACT}
    assert {name: found[name] for name in ("bundle", "graph", "threads", "rows", "file")} == {
        "bundle": str(path),
        "graph": EXACT,
        "threads": 1,
        "rows": list(ROWS),
        "file": str(place),
    }
    (entry,) = json.loads(place.read_text())
    assert (entry["graph"], entry["seconds"], entry["key"]["threads"]) == (EXACT, found["seconds"], 1)


def test_inspect_says_whether_a_bundle_is_tuned_here(bundle_of: BundleOf) -> None:
    path = bundle_of("mutual", 512, sampled=True)

    def last() -> str:
        return " ".join(run("inspect", path).stdout.splitlines()[-1].split())

    assert last() == f"exact by size, not timed on this machine; run: sae-runtime tune {path}"
    assert json.loads(run("inspect", path, "--json").stdout)["tuned"] is None
    assert run("tune", path).exit_code == 0
    assert last() == f"exact {EXACT}, the quicker one on this machine"
    assert json.loads(run("inspect", path, "--json").stdout)["tuned"] == EXACT


def test_what_cannot_be_tuned(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = bundle_of("token", 150)
    assert refused("tune", path) == (
        f"error: {path} has encode.onnx, expected two exact graphs to choose from; run: sae-runtime export {path}, "
        "which adds encode_exact.onnx where int8 can be used"
    )
    assert refused("tune", tmp_path / "no").startswith(f"error: {tmp_path / 'no'} does not exist")
    assert refused("tune", bundle_of("token", 512, sampled=True), "--threads", "0") == (
        "error: threads must be 1 to 1,024, got 0"
    )
    assert misused("tune") == "Missing argument 'BUNDLE'."
