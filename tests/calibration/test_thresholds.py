import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import D_IN, QUOTA, make_manifest, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime import Activations, load, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.bundle.plausible import OtherRows
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle, pre_activation_blocks
from sae_runtime.calibration.thresholds import calibration_rows, slots_for, thresholds
from sae_runtime.exports import witness
from sae_runtime.exports.export import export
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.thresholds import fit_thresholds

BundleOf = Callable[..., Path]
D_SAE = 150
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no pre-bias": {"pre_bias": False},
    "layer": {"norm": "layer"},
    "length": {"norm": "length", "pre_bias": False},
    "skip": {"skip": True},
    "transcoder": {"d_out": 7, "pre_bias": False, "skip": True},
}


def raw(path: Path, *, kind: str | None = None, form: str = "plain", **changes: Any) -> Path:
    """A bundle without threshold, as `convert` may write it; without allocation unless `kind` is given."""
    known = make_manifest(D_SAE, kind or "mutual")
    architecture = dataclasses.replace(known.architecture, **FORMS[form])
    manifest = dataclasses.replace(
        known, architecture=architecture, allocation=known.allocation if kind else None, **changes
    )
    weights = make_weights(D_SAE, "token")
    weights["W_enc"][:, 100:] *= 0.3  # small values, which a common threshold would silence
    rng = np.random.default_rng(3)
    for name, shape in bundle.weight_shapes(architecture).items():
        if name != "threshold" and (name not in weights or weights[name].shape != shape):
            weights[name] = rng.normal(0, 0.3, shape).astype(np.float32)
    bundle.write(path, weights, manifest)
    return path


def plain(folder: Path, n: int = 4000, **changes: Any) -> Activations:
    x = make_x(n)
    for row, value in changes.get("rows", {}).items():
        x[row] = value
    np.save(folder / "x.npy", x)
    return open_activations(folder / "x.npy")


def pre_activations(path: Path, x: NDArray[np.float32]) -> NDArray[np.float64]:
    read = bundle.read(path, calibrated=False)
    return witness.pre_activations(read.weights(), witness.normalise(x, read.manifest.architecture.norm)[0])


def blocks(path: Path, x: NDArray[np.float32], elements: int = 1 << 24) -> Iterator[NDArray[np.float32]]:
    return pre_activation_blocks(bundle.read(path, calibrated=False), x, elements=elements)


def cuts(z: NDArray[np.float64], k: float, max_density: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """A plain reference of `thresholds`."""
    n = len(z)
    own, top = np.zeros(z.shape[1]), np.full(z.shape[1], np.inf)
    for i in range(z.shape[1] if max_density is not None else 0):
        falling = np.append(np.sort(z[:, i])[::-1], 0.0)
        m, least = (int(np.rint(share * n)) for share in (max_density[i], max_density[i] / 30))  # type: ignore[index]
        own[i] = 0.0 if m >= n or falling[m] == 0 else falling[0] if m == 0 else (falling[m - 1] + falling[m]) / 2
        if least:
            top[i] = 0.0 if falling[least] == 0 else (falling[least - 1] + falling[least]) / 2
    left = np.sort(z[(z > own) & (z <= top)])[::-1]
    wanted = int(np.rint(k * n)) - int((z > top).sum())
    common = (left[wanted - 1] + left[wanted]) / 2 if len(left) > wanted else 0.0
    threshold: NDArray[np.float64] = np.minimum(np.maximum(own, common), top)
    return threshold


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [None, "feature"])
def test_thresholds_are_those_of_plain_numpy(tmp_path: Path, form: str, kind: str | None) -> None:
    x, path = make_x(1111), raw(tmp_path / "sae", form=form, kind=kind)
    max_density = quota.max_densities(QUOTA, 5.3, D_SAE) if kind == "feature" else None
    expected = cuts(pre_activations(path, x), 5.3, max_density)
    for elements in (1 << 24, 7 * 1111, 1):
        found = thresholds(blocks(path, x, elements), len(x), 5.3, max_density)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mutual", "feature"])
@pytest.mark.parametrize("k", [0.01, 6.0, 40.0])
def test_thresholds_are_those_of_training(tmp_path: Path, kind: str, k: float) -> None:
    x, path = make_x(1000), raw(tmp_path / "sae", kind=kind)
    weights = {name: array for name, array in bundle.read(path, calibrated=False).weights().items() if name != "b_pre"}
    model = SparseAutoencoder(D_SAE, torch.tensor(weights["b_dec"]), generator=torch.Generator())
    model.load_state_dict({n: torch.tensor(w.T.copy() if n == "W_enc" else w) for n, w in weights.items()})
    max_density = quota.max_densities(QUOTA, k, D_SAE) if kind == "feature" else None
    found = thresholds(blocks(path, x), len(x), k, max_density)
    np.testing.assert_allclose(found, fit_thresholds(model, torch.from_numpy(x), k, max_density), rtol=1e-5, atol=1e-6)
    if kind == "feature" and k == 6:  # otherwise the share would be 0
        assert (pre_activations(path, x) > found)[:, 100:].any(axis=0).mean() > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_without_threshold_is_served_at_k(tmp_path: Path, form: str) -> None:
    path, activations = raw(tmp_path / "sae", form=form), plain(tmp_path)
    with pytest.raises(bundle.BundleError, match="has no threshold yet.*sae-runtime calibrate"):
        load(path)
    made = calibrate_bundle(path, activations, k=5.0)
    read = bundle.read(path)
    assert read.manifest.allocation == Allocation(kind="mutual", k=5.0)
    assert read.manifest.measured == made.measured
    np.testing.assert_array_equal(read.tensor("threshold"), made.threshold)
    assert len(np.unique(made.threshold)) == 1
    sample = read.sample()
    assert sample is not None and sample.shape == (4 * D_IN, D_IN)

    x = make_x(4000)
    fitting, held = x[:3000], x[3000:]
    z = pre_activations(path, x)
    kept = z > made.threshold
    assert kept[:3000].sum() == 5 * 3000
    np.testing.assert_allclose(made.threshold, cuts(z[:3000], 5.0), rtol=2e-5)
    assert made.measured["tokens"] == 1000 and made.measured["dead_tokens"] == 4000
    assert made.measured["l0"] == pytest.approx(kept[3000:].sum(axis=1).mean(), abs=2e-3)
    assert made.measured["dead"] == (kept.sum(axis=0) == 0).mean()
    export(path, graphs=())
    sae = load(path)
    assert sae.encode(fitting).l0().sum() == pytest.approx(5 * 3000, abs=2)
    if form == "transcoder":
        assert "fvu" not in made.measured
    else:
        error = np.square(held - sae.decode(sae.encode(held), held)).sum()
        assert made.measured["fvu"] == pytest.approx(error / np.square(held - held.mean(axis=0)).sum(), rel=1e-4)
    assert np.mean(sae.encode(held).l0() > read.manifest.slots) <= 0.001


def test_feature_choice_keeps_its_quota_at_another_k(copy_of: BundleOf, tmp_path: Path) -> None:
    path = copy_of("feature", sampled=True)
    before = bundle.read(path)
    sample = before.sample()
    made = calibrate_bundle(path, plain(tmp_path), k=3.0)
    after = bundle.read(path)
    assert after.manifest.allocation == Allocation(kind="feature", k=3.0, quota=QUOTA)
    z = pre_activations(path, make_x(3000))
    np.testing.assert_allclose(made.threshold, cuts(z, 3.0, quota.max_densities(QUOTA, 3.0, D_SAE)), rtol=2e-5)
    assert len(np.unique(made.threshold)) > 2 and made.measured["l0"] == pytest.approx(3.0, rel=0.05)
    assert after.manifest.graphs == {} and not list(path.glob("*.onnx"))
    assert sample is not None
    np.testing.assert_array_equal(after.sample(), sample)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        np.testing.assert_array_equal(after.tensor(name), make_weights(D_SAE, "feature")[name])


def test_calibration_without_k_uses_the_fitted_k(copy_of: BundleOf, tmp_path: Path) -> None:
    path = copy_of("mutual")
    made = calibrate_bundle(path, plain(tmp_path))
    assert made.k == 6 and made.measured["l0"] == pytest.approx(6, rel=0.05)
    provenance = bundle.read(path).manifest.provenance["calibration"]
    assert provenance["activations"] == "x.npy"
    assert provenance["rows"] == {"calibration": 3000, "validation": 1000, "gaps": 0}


def documented(tmp_path: Path, sizes: list[int]) -> Activations:
    documents = np.arange(len(sizes)).repeat(sizes).astype(np.int32)
    safetensors.numpy.save_file({"activations": make_x(sum(sizes)), "documents": documents}, tmp_path / "x.safetensors")
    return open_activations(tmp_path / "x.safetensors")


def test_no_document_is_in_both_parts_of_the_rows(tmp_path: Path) -> None:
    fitting, measuring, gaps = calibration_rows(documented(tmp_path, [10, 40, 23, 27]))
    np.testing.assert_array_equal(fitting, np.arange(73))
    np.testing.assert_array_equal(measuring, np.arange(73, 100))
    assert gaps == 0


def test_a_long_document_is_cut_with_a_gap(tmp_path: Path) -> None:
    fitting, measuring, gaps = calibration_rows(documented(tmp_path, [10, 3990]))
    np.testing.assert_array_equal(fitting, np.arange(2904))  # three quarters of what 128 rows of gap leave
    np.testing.assert_array_equal(measuring, np.arange(3032, 4000))
    assert gaps == 128


def test_too_few_rows_to_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1000 rows, too few .* gap of 128 rows in a document; give 1,536 rows"):
        calibration_rows(documented(tmp_path, [1000]))


def test_a_part_with_too_many_rows_is_thinned_out_evenly(tmp_path: Path) -> None:
    fitting, measuring, _ = calibration_rows(plain(tmp_path, 1000), elements=50 * D_IN)
    assert (len(fitting), len(measuring)) == (50, 50)
    assert (fitting[0], fitting[-1], measuring[0], measuring[-1]) == (0, 749, 750, 999)


def test_fewer_positive_values_than_the_total_are_all_served(tmp_path: Path) -> None:
    path = raw(tmp_path / "sae")
    made = calibrate_bundle(path, plain(tmp_path), k=140.0)
    assert not made.threshold.any() and 0 < made.measured["l0"] < 140


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_equal_rows_fit_no_threshold(tmp_path: Path, noise: float) -> None:
    path, rng = raw(tmp_path / "sae"), np.random.default_rng(0)
    rows = (5 + make_x(1)) * (1 + noise * rng.standard_normal((4000, D_IN))).astype(np.float32)
    with pytest.raises(ValueError, match=r"x\.npy: all rows are equal, so no threshold divides them; harvest"):
        calibrate_bundle(path, plain(tmp_path, rows={...: rows}), k=5.0)


def test_equal_rows_to_measure_on_have_no_variance_to_explain(tmp_path: Path) -> None:
    last: dict[Any, Any] = dict.fromkeys(range(3000, 4000), make_x(1)[0])
    made = calibrate_bundle(raw(tmp_path / "sae"), plain(tmp_path, rows=last), k=5.0)
    assert "fvu" not in made.measured and made.measured["l0"] >= 0


def test_rows_of_another_layer_are_warned_of(tmp_path: Path) -> None:
    path = raw(tmp_path / "sae")
    calibrate_bundle(path, plain(tmp_path), k=5.0)
    other = np.random.default_rng(1).standard_normal((4000, D_IN)).astype(np.float32) * 0.05
    with pytest.warns(OtherRows, match=r"x\.npy: mean L0 is .* where the bundle's is .*; are these activations of"):
        calibrate_bundle(path, plain(tmp_path, rows={...: other}), k=5.0)


@pytest.mark.parametrize("form", ["layer", "length"])
def test_activations_whose_reconstruction_overflows_are_refused(tmp_path: Path, form: str) -> None:
    path = raw(tmp_path / "sae", form=form)
    with pytest.raises(ValueError, match="^activations are so large that their features are no finite numbers"):
        calibrate_bundle(path, plain(tmp_path, rows={...: make_x(4000) * np.float32(4e37)}), k=5.0)


def test_another_output_leaves_the_bundle_alone(tmp_path: Path) -> None:
    path, out = raw(tmp_path / "sae"), tmp_path / "out"
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    calibrate_bundle(path, plain(tmp_path), k=5.0, out=out)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert bundle.read(out).calibrated
    with pytest.raises(FileExistsError, match="out already exists; pass --force"):
        calibrate_bundle(path, plain(tmp_path), k=5.0, out=out)
    calibrate_bundle(path, plain(tmp_path), k=4.0, out=out, force=True)
    assert json.loads((out / "sae_runtime.json").read_text())["allocation"]["k"] == 4.0


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_calibration_that_breaks_off_leaves_the_old_bundle(
    copy_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path, activations = copy_of("mutual"), plain(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def breaks_off(*_: object) -> None:
        raise error("broken off")

    monkeypatch.setattr(bundle, "to_json", breaks_off)  # makes the last file of a bundle
    with pytest.raises(error, match="broken off"):
        calibrate_bundle(path, activations, k=3.0)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "x.npy"]


def test_calibration_refuses_to_lose_files_that_are_not_the_bundles(copy_of: BundleOf, tmp_path: Path) -> None:
    path = copy_of("mutual")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which would be lost; name another output"):
        calibrate_bundle(path, plain(tmp_path))
    (path / "notes.txt").unlink()
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in path.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    with pytest.raises(FileExistsError, match="holds links, as a Hub cache does, which would be lost"):
        calibrate_bundle(snapshot, plain(tmp_path))
    calibrate_bundle(snapshot, plain(tmp_path), out=tmp_path / "out")
    assert bundle.read(tmp_path / "out").calibrated


def test_bundles_values_of_k_and_activations_that_do_not_fit_are_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = raw(tmp_path / "sae", model="tiny")
    good = plain(tmp_path)
    with pytest.raises(ValueError, match="keeps 6 features of every token and needs no threshold; serve it as it"):
        calibrate_bundle(bundle_of("token"), good, k=3.0)
    with pytest.raises(ValueError, match=r"does not say how many features a token should have; give --k"):
        calibrate_bundle(path, good)
    for k in (0.0, -1.0, 151.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"k must be in \(0, d_sae=150\], got "):
            calibrate_bundle(path, good, k=k)
    with pytest.raises(
        ValueError,
        match="has 5 rows, too few to fit a threshold on three quarters and to measure it on the rest; give 8 rows",
    ):
        calibrate_bundle(path, plain(tmp_path, 5), k=3.0)
    with pytest.raises(ValueError, match="row 3999 holds NaN or Inf"):
        calibrate_bundle(path, plain(tmp_path, rows={3999: np.nan}), k=3.0)
    with pytest.raises(ValueError, match="so large that their features are no finite numbers"):
        calibrate_bundle(path, plain(tmp_path, rows={7: 3e38}), k=3.0, max_norm=np.inf)
    with pytest.raises(ValueError, match="max_norm must be at least 1 times the median norm, got nan"):
        calibrate_bundle(path, good, k=3.0, max_norm=np.nan)
    np.save(tmp_path / "x.npy", np.zeros((100, 7), np.float32))
    with pytest.raises(ValueError, match="activations have d_in 7, this SAE expects 24"):
        calibrate_bundle(path, open_activations(tmp_path / "x.npy"), k=3.0)
    assert not bundle.read(path, calibrated=False).calibrated


def test_slots_hold_all_but_one_token_in_a_thousand_and_are_a_multiple_of_eight() -> None:
    l0 = np.array([10] * 999 + [90])
    assert slots_for(l0, 150) == 16 and slots_for(np.full(100, 8), 150) == 16
    assert slots_for(np.full(10, 200), 150) == 150 and slots_for(np.zeros(10, np.int64), 150) == 8
