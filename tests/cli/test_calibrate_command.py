import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from conftest import make_x

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(1000))
    return tmp_path / "x.npy"


def test_calibrates_in_place_and_says_what(copy_of: BundleOf, acts: Path) -> None:
    path = copy_of("mutual")
    result = run("calibrate", path, "--activations", acts, "--k", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    read = bundle.read(path)
    measured = read.manifest.measured
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert words == [
        f"bundle {path}",
        f"threshold {read.tensor('threshold')[0]:.6g}",
        "rows calibrated on 750, measured on 250, in gaps between them 0",
        f"measured FVU {measured['fvu']:.4f}, explained variance {1 - measured['fvu']:.4f}, "
        f"L0 {measured['l0']:.2f} on 250 tokens kept out of the fit, wanted 4",
        f"next sae-runtime export {path}",
    ]
    said = refused("extract", path, "--activations", acts, "-o", acts.parent / "features")
    assert said == f"error: {path} has no encode.onnx: not exported yet; run: sae-runtime export {path}"
    export(path, graphs=())
    assert load(path).encode(make_x(1000)[:750]).l0().mean() == pytest.approx(4, abs=0.01)


def test_the_next_command_is_quoted_for_a_shell(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a bundle's"
    result = run("calibrate", bundle_of("mutual"), "--activations", acts, "-o", out)
    _, _, then = result.stdout.splitlines()[-1].partition("next")
    assert shlex.split(then) == ["sae-runtime", "export", str(out)]


def test_calibrate_prints_json_of_another_output(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("calibrate", bundle_of("feature"), "--activations", acts, "-o", out, "--json", "-q")
    read = bundle.read(out)
    threshold = read.tensor("threshold")
    assert json.loads(result.stdout) == {
        "bundle": str(out),
        "k": 6.0,
        "threshold": [threshold.min(), threshold.max()],
        "rows": {"calibration": 750, "validation": 250, "gaps": 0},
        "measured": dict(read.manifest.measured),
        "left_out": {"calibration": 0, "validation": 0},
        "measured_with_left_out": {},
    }


def test_calibrate_refuses_top_k_and_outputs_that_hold_inputs(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    path = bundle_of("token")
    assert refused("calibrate", path, "--activations", acts, "--k", "4") == (
        f"error: {path} keeps 6 features of every token and needs no threshold; serve it as it is"
    )
    path = bundle_of("mutual")
    said = refused("calibrate", path, "--activations", acts, "-o", path.parent, "--force")
    assert said == f"error: the output {path.parent} is or holds the bundle {path}; name another output"
    said = refused("calibrate", tmp_path, "--activations", acts)
    assert said == f"error: the output {tmp_path} is or holds the activations {acts}; name another output"
