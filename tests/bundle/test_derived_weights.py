"""derived.safetensors is held against the weights: every export passes, and lies with valid hashes are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused
from conftest import make_x
from numpy.typing import NDArray
from resealed import changed

from sae_runtime import load
from sae_runtime.bundle import folder
from sae_runtime.bundle.derived_weights import fault_of_derived
from sae_runtime.bundle.folder import DERIVED, BundleError
from sae_runtime.bundle.manifest import Architecture, Manifest
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.exports.certified.gpu import half_precision
from sae_runtime.exports.certified.integers import quantise

Arrays = dict[str, NDArray[Any]]


def made(seed: int, d_in: int, d_sae: int = 512) -> tuple[Arrays, Arrays, Manifest]:
    """The derived weights of an SAE of odd sizes: columns of 0, whole numbers, far biases, one activation alone."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(d_in, d_sae)) * 10.0 ** rng.integers(-6, 2) * rng.gamma(1, 1, d_sae)
    w[:, rng.integers(0, d_sae, 20 * (seed % 3 == 0))] = 0
    w[0] *= 100 if seed % 4 == 0 else 1
    w = np.rint(w) if seed % 5 == 0 else w
    b_enc, b_pre = (rng.normal(size=n) * 10.0 ** rng.integers(-6, 4) for n in (d_sae, d_in))
    weights: Arrays = {"W_enc": w.astype(np.float32), "b_enc": b_enc.astype(np.float32)}
    weights["b_pre"] = b_pre.astype(np.float32)
    x = (rng.normal(size=(1 if seed % 7 == 0 else 40, d_in)) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)
    derived: Arrays = quantise(weights, x, rng) | half_precision(weights, x, 4) | {"W_enc_rows": weights["W_enc"].T}
    architecture = Architecture(d_in=d_in, d_sae=d_sae, selection="topk", k=6)
    return derived, weights, Manifest(architecture=architecture, allocation=None, slots=6)


@pytest.mark.parametrize("d_in", [2, 3, 24, 65])
def test_what_our_exporter_derives_is_never_refused(d_in: int) -> None:
    for seed in range(10):
        derived, weights, manifest = made(seed, d_in)
        assert [fault_of_derived(derived, weights, manifest) for _ in range(5)] == [None] * 5, seed


LIES = [
    *(("W_enc_rows", value) for value in (np.nan, np.inf, 0, 1e38, -3)),
    *(("int8_bias", value) for value in (np.nan, -1e38)),
    *(("int8_scale", value) for value in (np.nan, np.inf, -1e38, 1e38)),
    *(("int8_share", value) for value in (np.nan, -1, 0)),
    *(("int8_bound", value) for value in (np.nan, -1e38)),
    *(("int8_map", value) for value in (np.nan, 1e38)),
    *(("int8_centre", value) for value in (np.nan, 1e38)),
    *(("int8_rounding", value) for value in (np.nan, 0)),
    *(("int8_direct", value) for value in (np.nan, -1)),
    *(("half_kappa", value) for value in (np.nan, 0, -1)),
    ("half_weights", 0),
]


@pytest.mark.parametrize(("name", "value"), LIES)
def test_one_number_that_hides_or_moves_a_feature_is_found(name: str, value: float) -> None:
    derived, weights, manifest = made(1, 65, 1024)
    lie = np.array(derived[name])
    row = 65 if name == "half_weights" else 0  # that of the biases, all of which are compared
    lie.reshape(len(lie), -1)[row if len(lie) > 1 else 0, 0] = value
    fault = fault_of_derived(derived | {name: lie}, weights, manifest)
    assert fault is not None and len(fault.split()) > 3


def test_int8_weights_of_another_encoder_and_arrays_of_other_shapes_are_found() -> None:
    derived, weights, manifest = made(1, 65, 4096)
    other = derived | {"int8_weights": derived["int8_weights"][:, ::-1]}
    assert fault_of_derived(other, weights, manifest) == "int8_weights do not fit W_enc"
    other = derived | {"half_weights": np.roll(derived["half_weights"], 1, axis=0)}
    assert "half_weights" in str(fault_of_derived(other, weights, manifest))
    for name, array in derived.items():
        for wrong in (array[:-1], array[None], array.astype(np.complex64)):
            assert f"{name} is " in str(fault_of_derived(derived | {name: wrong}, weights, manifest))
    with pytest.raises(ValueError, match="int8_order does not list"):
        fault_of_derived(derived | {"int8_order": derived["int8_order"] * 0}, weights, manifest)


@pytest.mark.parametrize("name", ["W_enc_rows", "int8_bias", "max_density"])
def test_a_resealed_lie_is_refused_by_every_graph_that_reads_it(copy_of: Callable[..., Path], name: str) -> None:
    path = copy_of("feature", 512)
    spec = read_header(path / DERIVED)[name]
    array = np.array(map_tensor(path / DERIVED, spec))
    array.reshape(-1)[0] = -1e6
    changed(path, DERIVED, lambda data: data[: spec.offset] + array.tobytes() + data[spec.offset + spec.size :])
    sentence = "derived.safetensors is not made from the weights .*; load with rebuild=True"
    with pytest.raises(BundleError, match=sentence):
        load(path, graph="encode_exact.onnx")
    sae = load(path)  # encode.onnx reads the weights alone
    x = make_x(6)
    for call in (lambda: sae.steer(x, []), lambda: folder.read(path).graph("encode_joint.onnx")):
        with pytest.raises(BundleError, match=sentence):
            call()
    assert "is not made from the weights" in refused("inspect", path)
    assert np.array_equal(load(path, rebuild=True, graph="encode.onnx").encode(x).to_dense(), sae.encode(x).to_dense())
