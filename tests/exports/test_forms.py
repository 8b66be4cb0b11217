"""Encoders of every form that other libraries train: norms, groups, thresholds of 0, transcoders, skips."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import D_IN, make_x
from numpy.typing import NDArray

from sae_runtime import BundleError, Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest, from_json, to_json
from sae_runtime.bundle.normalise import normalised
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.insert import insert_graph

D_SAE, K, D_OUT = 512, 8, 11
FORMS: dict[str, dict[str, object]] = {
    "topk": {"selection": "topk", "k": K, "pre_bias": False},
    "topk, layer norm": {"selection": "topk", "k": K, "norm": "layer"},
    "topk, length": {"selection": "topk", "k": K, "norm": "length", "pre_bias": False},
    "topk, skip": {"selection": "topk", "k": K, "skip": True},
    "groups": {"selection": "groupmax", "k": K},
    "groups, layer norm": {"selection": "groupmax", "k": K, "norm": "layer", "pre_bias": False},
    "jump": {"selection": "threshold", "pre_bias": False},
    "jump, layer norm": {"selection": "threshold", "norm": "layer"},
    "jump, length": {"selection": "threshold", "norm": "length"},
    "relu": {"selection": "threshold"},
    "transcoder": {"selection": "threshold", "pre_bias": False, "d_out": D_OUT},
    "transcoder, skip": {"selection": "topk", "k": K, "pre_bias": False, "d_out": D_OUT, "skip": True},
    "transcoder of equal widths": {"selection": "groupmax", "k": K, "pre_bias": False, "d_out": D_IN},
}
Weights = dict[str, NDArray[np.float32]]
Made = Callable[[str], tuple[Path, Architecture, Weights]]


def make(form: str) -> tuple[Manifest, Weights]:
    architecture = Architecture(d_in=D_IN, d_sae=D_SAE, **FORMS[form])  # type: ignore[arg-type]
    rng = np.random.default_rng(len(form))
    weights: Weights = {}
    for name, shape in bundle.weight_shapes(architecture).items():
        weights[name] = rng.normal(0, D_IN**-0.5 if name == "W_enc" else 0.3, shape).astype(np.float32)
    if architecture.selection == "threshold":
        zero = form == "relu"
        weights["threshold"] = np.zeros(D_SAE, np.float32) if zero else rng.uniform(1, 5, D_SAE).astype(np.float32)
    allocation = None if architecture.k is None else Allocation(kind="token", k=float(architecture.k))
    return Manifest(architecture=architecture, allocation=allocation, slots=architecture.k or 32, hook="here"), weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    done: dict[str, tuple[Path, Architecture, Weights]] = {}

    def give(form: str) -> tuple[Path, Architecture, Weights]:
        if form not in done:
            manifest, weights = make(form)
            path = tmp_path_factory.mktemp("form") / "sae"
            bundle.write(path, weights, manifest, sample=activations(300, 9))
            export(path, graphs=("exact", "gpu"))
            done[form] = path, manifest.architecture, weights
        return done[form]

    return give


def activations(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Off centre, and of lengths that differ."""
    rng = np.random.default_rng(seed)
    return ((make_x(n, seed=seed) + 0.7) * rng.uniform(0.3, 3, (n, 1))).astype(np.float32)


def computed(architecture: Architecture, weights: Weights, x: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and reconstruction, in torch and float64, as the manifest's docstring words them."""
    w = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    given = torch.from_numpy(x).double()
    mean, size, prepared = torch.zeros(len(x), 1), torch.ones(len(x), 1), given
    if architecture.norm == "layer":
        mean, size = given.mean(1, keepdim=True), given.std(1, keepdim=True)
        prepared = (given - mean) / (size + 1e-5)
    elif architecture.norm == "length":
        size = given.norm(dim=1, keepdim=True) / architecture.d_in**0.5
        prepared = given / size
    z = torch.relu((prepared - (w["b_dec"] if architecture.pre_bias else 0)) @ w["W_enc"] + w["b_enc"])
    if architecture.selection == "threshold":
        f = z * (z > w["threshold"])
    else:
        runs = z if architecture.selection == "topk" else z.view(len(x), architecture.k or 0, -1)
        top = runs.topk(architecture.k or 0 if architecture.selection == "topk" else 1, dim=-1)
        f = torch.zeros_like(runs).scatter(-1, top.indices, top.values).view_as(z)
    skip = given @ w["W_skip"].T if architecture.skip else 0
    return f, size * (f @ w["W_dec"] + w["b_dec"]) + mean + skip


def assert_close(found: NDArray[np.float32], expected: torch.Tensor) -> None:
    wanted = expected.numpy()
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max(axis=-1, initial=0) / np.maximum(np.abs(wanted).max(axis=-1, initial=0), 1e-30)
    assert error.max(initial=0) <= 1e-5


@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("smallest", [1, 10**9])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_encodes_and_decodes_as_torch_does(made: Made, form: str, smallest: int, n: int) -> None:
    path, architecture, weights = made(form)
    sae, x = load(path, tiling=Tiling(smallest=smallest)), activations(n, 1)
    assert ("encode_exact.onnx" in sae.manifest.graphs) == (architecture.selection != "groupmax" and form != "relu")
    features = sae.encode(x)
    f, x_hat = computed(architecture, weights, x)
    assert_close(features.to_dense(), f)
    assert_close(sae.decode(features, x), x_hat)
    if n == 300:
        assert 3 < features.l0().mean() < (300 if form == "relu" else 80), "the test sees matches, and cuts"


@pytest.mark.parametrize("form", [form for form, settings in FORMS.items() if "d_out" not in settings])
def test_steering_every_form_changes_x_as_torch_does(made: Made, form: str) -> None:
    path, architecture, weights = made(form)
    x = activations(6, 2)
    f, x_hat = computed(architecture, weights, x)
    feature = int(f.sum(0).argmax())
    edited = f.clone()
    edited[:, feature] = 2 * f[:, feature] + 1
    size = normalised(x, architecture.norm)[2]
    expected = torch.from_numpy(x) + torch.from_numpy(size) * (
        (edited - f) @ torch.from_numpy(weights["W_dec"]).double()
    )
    edit = Edit(feature, factor=2, shift=1)
    assert_close(load(path).steer(x, [edit]), expected)
    np.testing.assert_array_equal(load(path).steer(x, []), x)


@pytest.mark.parametrize("form", ["transcoder", "transcoder of equal widths"])
def test_steering_a_transcoder_is_refused(made: Made, form: str) -> None:
    path, _, _ = made(form)
    assert "steer.onnx" not in bundle.read(path).manifest.graphs
    with pytest.raises(ValueError, match=r"^this is a transcoder: .* cannot edit it$"):
        load(path).steer(activations(1), [])


def test_decoding_a_normalised_sae_needs_x(made: Made) -> None:
    sae, x = load(made("topk, layer norm")[0]), activations(3)
    features = sae.encode(x)
    with pytest.raises(ValueError, match=r"^this SAE needs the activations to decode; call decode\(features, x\)$"):
        sae.decode(features)
    with pytest.raises(ValueError, match=r"^x has tokens \[2\], the features \[3\]; give the x of the features$"):
        sae.decode(features, x[:2])


def test_the_batch_rule_of_an_sae_without_allocation_is_refused(made: Made) -> None:
    with pytest.raises(ValueError, match=r"^this SAE comes without an allocation, so it has no batch rule; use encode"):
        load(made("jump")[0]).encode_batch(activations(3))
    with pytest.raises(ValueError, match=r"^this SAE keeps the largest of each of 8 groups; its k cannot be changed$"):
        load(made("groups")[0]).encode(activations(3), k=3)


def test_a_token_of_zeros_is_encoded_as_zeros_where_lengths_are_normalised(made: Made) -> None:
    path, _, weights = made("jump, length")
    sae, x = load(path), np.zeros((2, D_IN), np.float32)
    z = np.maximum(weights["b_enc"] - weights["b_dec"] @ weights["W_enc"], 0)
    np.testing.assert_allclose(sae.encode(x).to_dense()[0], z * (z > weights["threshold"]), atol=1e-5)
    np.testing.assert_array_equal(sae.decode(sae.encode(x), x), 0)


@pytest.mark.parametrize("scale", [1e-28, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("form", ["jump, length", "topk, layer norm", "groups, layer norm", "topk, length"])
def test_norms_hold_where_squares_overflow_or_vanish(made: Made, form: str, scale: float) -> None:
    path, architecture, weights = made(form)
    sae, x = load(path), (activations(20, 6) * scale).astype(np.float32)
    f, x_hat = computed(architecture, weights, x)
    features = sae.encode(x)
    assert_close(features.to_dense(), f)
    assert_close(sae.decode(features, x), x_hat)
    of_numpy, _, size = normalised(x, architecture.norm)
    assert np.isfinite(of_numpy).all() and (size > 0).all()
    feature = int(f.sum(0).argmax())
    assert np.isfinite(load(path).steer(x, [Edit(feature, shift=1)])).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decodes_an_empty_batch(made: Made, form: str) -> None:
    path, architecture, _ = made(form)
    sae, x = load(path), activations(0)
    assert sae.decode(sae.encode(x), x).shape == (0, architecture.d_x_hat)


@pytest.mark.parametrize("form", FORMS)
def test_the_manifest_keeps_every_form(form: str) -> None:
    manifest, _ = make(form)
    assert from_json(to_json(manifest)) == manifest


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"selection": "groupmax", "k": 5}, "groupmax needs a k that divides d_sae=512, got 5"),
        ({"selection": "groupmax"}, "k belongs to selections 'topk' and 'groupmax', and only there"),
        ({"selection": "best"}, "selection must be one of topk, groupmax, threshold, got 'best'"),
        ({"selection": "threshold", "norm": "whitening"}, "norm must be one of none, layer, length, got 'whitening'"),
        ({"selection": "threshold", "d_out": 3}, "a transcoder has d_out of at least 1, no pre_bias and no norm"),
        ({"selection": "threshold", "norm": "layer", "d_in": 1}, "one number has no standard deviation; .*"),
    ],
)
def test_a_form_that_does_not_exist_is_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        Architecture(**{"d_in": D_IN, "d_sae": D_SAE, **settings})  # type: ignore[arg-type]


def test_a_bundle_without_a_threshold_is_refused_until_calibrated(tmp_path: Path) -> None:
    manifest, weights = make("jump")
    del weights["threshold"]
    bundle.write(tmp_path / "sae", weights, dataclasses.replace(manifest, allocation=Allocation(kind="mutual", k=8.0)))
    assert not bundle.read(tmp_path / "sae", calibrated=False).calibrated
    assert not (tmp_path / "sae" / "cfg.json").exists(), "SAELens cannot load it either"
    for use in (load, export):
        with pytest.raises(BundleError, match=f"^{re.escape(str(tmp_path))}.* has no threshold yet, .*calibrate"):
            use(tmp_path / "sae")


@pytest.mark.parametrize("form", ["topk, layer norm", "jump, length", "groups", "topk, skip"])
def test_a_splice_of_every_form_computes_the_same(made: Made, form: str, tmp_path: Path) -> None:
    import onnx_ir as ir
    import onnxruntime

    path, architecture, weights = made(form)
    read = bundle.read(path)
    model = insert_graph(read, ir.DataType.FLOAT, read=True, edit=False, replace=True)
    ir.save(model, path / "insert.onnx")
    session = onnxruntime.InferenceSession(path / "insert.onnx")
    x = activations(6, 4)
    indices, values, y = session.run(["indices", "values", "y"], {"x": x.reshape(2, 3, D_IN), "slots": np.array([40])})
    f, x_hat = computed(architecture, weights, x)
    found = np.zeros((6, D_SAE), np.float32)
    np.put_along_axis(found, indices.reshape(6, -1)[:, ::-1], values.reshape(6, -1)[:, ::-1], 1)
    if architecture.selection == "threshold":
        assert_close(np.sort(found)[:, -30:], f.sort().values[:, -30:])
    assert_close(y.reshape(6, -1), x_hat)
