"""stats.safetensors: what each feature did on the rows that train, calibrate and evaluate measured."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused, run
from conftest import make_x
from numpy.typing import NDArray

from sae_runtime import load, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import BundleError, put_stats
from sae_runtime.bundle.stats import FILE, Stats, counted, read_stats, save_stats
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.calibration.thresholds import calibration_rows
from sae_runtime.exports.export import export
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.divided import divided
from sae_runtime.train.measure import evaluation

BundleOf = Callable[..., Path]
D_SAE = 150
MASSIVE = (3, 50, 299)  # rows of massive norm


def features_of(path: Path, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Activations [n, d_sae] by the served rule, in float64."""
    read = bundle.read(path)
    w = {name: array.astype(np.float64) for name, array in read.weights().items()}
    z = np.maximum((x - w["b_pre"]) @ w["W_enc"] + w["b_enc"], 0)
    if "threshold" in w:
        return np.where(z > w["threshold"], z, 0)
    cut = -np.sort(-z, axis=1)[:, read.manifest.architecture.k or 0]
    return np.where(z > cut[:, None], z, 0)


def assert_stats(path: Path, x: NDArray[np.float32]) -> None:
    """Assert that the bundle's stats are those of x; a value at the cut may fall on either side."""
    f, stats = features_of(path, x), bundle.read(path).stats()
    assert stats is not None and stats.tokens == len(x)
    np.testing.assert_allclose(stats.density, (f > 0).mean(axis=0), atol=1.5 / len(x))
    np.testing.assert_allclose(stats.largest, f.max(axis=0), rtol=1e-5)
    assert (stats.largest > 0).any() and stats.density.dtype == stats.largest.dtype == np.float32


@pytest.fixture
def x() -> NDArray[np.float32]:
    x = 40 * make_x(2000)
    x[MASSIVE, :] *= 100
    return x


@pytest.mark.parametrize("allocation", ["token", "feature"])
def test_training_keeps_stats_of_the_held_out_rows(tmp_path: Path, x: Any, allocation: str) -> None:
    np.save(tmp_path / "x.npy", x)
    config = TrainConfig(allocation=allocation, k=4, d_sae=48, tokens=4000, batch=100, holdout=0.4)
    manifest = fit(tmp_path / "x.npy", tmp_path / "sae", config)
    parts, left_out = divided(open_activations(tmp_path / "x.npy"), 0.4, 0, 10.0)
    assert sum(left_out.rule.rows.values()) == len(MASSIVE)
    assert_stats(tmp_path / "sae", x[np.concatenate([parts.calibration, parts.validation])])
    stats = bundle.read(tmp_path / "sae").stats()
    assert stats is not None and (stats.density == 0).mean() == manifest.measured["dead"]
    export(tmp_path / "sae")
    after = load(tmp_path / "sae").stats
    assert after is not None
    np.testing.assert_array_equal(after.largest, stats.largest)


def test_calibrate_keeps_stats_by_the_new_threshold(bundle_of: BundleOf, tmp_path: Path) -> None:
    x = make_x(2000)
    x[MASSIVE, :] *= 100
    np.save(tmp_path / "x.npy", x)
    activations = open_activations(tmp_path / "x.npy")
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    put_stats(bundle.read(path), counted(np.full(D_SAE, 7), np.full(D_SAE, 99.0), 7))
    calibrate_bundle(path, activations, k=4)
    kept = np.setdiff1d(np.arange(len(x)), MASSIVE)
    fitting, measuring, _ = calibration_rows(activations, kept)
    assert_stats(path, x[np.concatenate([fitting, measuring])])


def test_evaluate_keeps_stats_where_asked(bundle_of: BundleOf, tmp_path: Path) -> None:
    x = make_x(300)
    x[MASSIVE, :] *= 100
    np.save(tmp_path / "x.npy", x)
    path = Path(shutil.copytree(bundle_of("token"), tmp_path / "sae"))
    arguments = ("evaluate", path, "--activations", tmp_path / "x.npy")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert run(*arguments).exit_code == 0
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    result = run(*arguments, "--stats")
    assert (result.exit_code, result.stdout.splitlines()[-1].split()) == (0, ["kept", str(path / FILE)])
    assert_stats(path, np.delete(x, MASSIVE, axis=0))
    shown = [" ".join(line.split()) for line in run("inspect", path).stdout.splitlines()]
    assert "stats density and largest activation of each feature, on 297 tokens" in shown
    assert any(line.startswith(f"{FILE} ") and line.endswith("sha256 ok") for line in shown)
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {FILE, bundle.MANIFEST, "README.md"}
    assert run(*arguments, "--stats").exit_code == 0  # the same again
    assert {file.name: file.read_bytes() for file in path.iterdir()} == after


def test_evaluate_keeps_no_stats_of_a_bundle_that_was_replaced_meanwhile(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", make_x(300))
    path = Path(shutil.copytree(bundle_of("token"), tmp_path / "sae"))
    measure = evaluation.evaluate

    def replaced_while_measured(*arguments: Any, **options: Any) -> Any:
        measured = measure(*arguments, **options)
        shutil.rmtree(path)
        shutil.copytree(bundle_of("mutual"), path)
        return measured

    monkeypatch.setattr(evaluation, "evaluate", replaced_while_measured)
    said = refused("evaluate", path, "--activations", tmp_path / "x.npy", "--stats", "--quiet")
    assert said == f"error: {path} changed since it was loaded; load it again"
    assert bundle.read(path).stats() is None


def test_a_bundle_of_links_is_not_written_to(bundle_of: BundleOf, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for file in bundle_of("mutual").iterdir():
        (tmp_path / "cache" / file.name).symlink_to(file)
    stats = counted(np.ones(D_SAE, np.int64), np.ones(D_SAE), 10)
    read = dataclasses.replace(bundle.read(bundle_of("mutual")), path=tmp_path / "cache")
    with pytest.raises(BundleError, match="holds links, as a Hub cache does; copy the bundle's files into a folder"):
        put_stats(read, stats)
    assert not (tmp_path / "cache" / FILE).exists()


def test_a_bundle_without_stats_says_so(bundle_of: BundleOf) -> None:
    assert bundle.read(bundle_of("mutual")).stats() is None and load(bundle_of("mutual")).stats is None
    assert "stats" not in [line.split()[0] for line in run("inspect", bundle_of("mutual")).stdout.splitlines()]


def test_stats_with_other_tensors_beside_them_are_read(tmp_path: Path) -> None:
    known = {"density": np.ones(3, np.float32), "largest": np.full(3, 2, np.float32), "tokens": np.array([5])}
    save_tensors(tmp_path / "s", {**known, "promoted": np.ones((3, 2), np.int32)})
    stats = read_stats(tmp_path / "s", 3)
    assert stats is not None and stats.tokens == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": np.ones(4, np.float32)}, r"density must be F32 \[3\], found F32 \[4\]"),
        ({"largest": np.ones(3)}, r"largest must be F32 \[3\], found F64 \[3\]"),
        ({"tokens": None}, r"tokens must be I64 \[1\], found nothing"),
        ({"density": np.array([0, 1.5, 0], np.float32)}, "densities must be from 0 to 1"),
        ({"density": np.array([0, np.nan, 0], np.float32)}, "densities must be from 0 to 1"),
        ({"largest": np.array([0, np.inf, 0], np.float32)}, "activations finite"),
        ({"largest": np.array([0, -1, 0], np.float32)}, "activations finite"),
        ({"tokens": np.array([-5])}, "the number of tokens is -5"),
    ],
)
def test_stats_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"density": np.ones(3, np.float32), "largest": np.ones(3, np.float32), "tokens": np.array([5])}
    save_tensors(tmp_path / "s", {name: array for name, array in {**good, **change}.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        read_stats(tmp_path / "s", 3)


def test_a_bundle_with_wrong_or_altered_stats_is_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    put_stats(bundle.read(path), Stats(np.ones(D_SAE, np.float32), np.ones(D_SAE, np.float32), 10))
    save_stats(path / FILE, Stats(np.ones(D_SAE, np.float32), np.full(D_SAE, 2, np.float32), 10))
    with pytest.raises(BundleError, match=f"{FILE} was altered"):
        load(path)
    save_stats(path / FILE, Stats(np.ones(3, np.float32), np.ones(3, np.float32), 10))
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest["files"][FILE] = dataclasses.asdict(bundle.record(path / FILE))
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))
    said = refused("inspect", path)
    assert re.search(r"density must be F32 \[150\], found F32 \[3\]; make the bundle again", said)


def test_steering_by_multiples_on_the_command_line(bundle_of: BundleOf, tmp_path: Path) -> None:
    path, x = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae")), make_x(50)
    np.save(tmp_path / "x.npy", x)
    arguments = ("steer", path, "--activations", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--force")
    assert refused(*arguments, "--set", "12=x2") == (
        "error: feature 12 is edited in multiples of its largest activation, which is not known; measure it: "
        "sae-runtime evaluate BUNDLE --activations PATH --stats"
    )
    largest = np.linspace(0, 3, D_SAE, dtype=np.float32)
    put_stats(bundle.read(path), counted(np.ones(D_SAE, np.int64), largest, 10))
    edits = ("--set", "12=x2", "--add", "30=x-0.5", "--cap", "31=x.25", "--set", "40=3", "--ablate", "41")
    for more in ((), ("--only-active",)):
        assert run(*arguments, *edits, *more).exit_code == 0
        f = features_of(path, x)
        new = f.copy()
        new[:, 12], new[:, 40], new[:, 41] = 2 * largest[12], 3, 0
        new[:, 30], new[:, 31] = f[:, 30] - 0.5 * largest[30], np.minimum(f[:, 31], 0.25 * largest[31])
        new = np.where(f > 0, new, f) if more else new
        expected = x + (new - f) @ bundle.read(path).tensor("W_dec").astype(np.float64)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-4)
    assert refused(*arguments, "--set", "0=x2").startswith("error: feature 0 was active on none of the tokens")
    assert run(*arguments, "--scale", "3=x2").exit_code == 2
