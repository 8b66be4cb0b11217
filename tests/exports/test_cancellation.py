"""Exactness where the terms of each pre-activation are far larger than all of a row's values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, K, make_manifest, make_weights, slots_of
from numpy.typing import NDArray

from sae_runtime import SAE, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import Bundle
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

Array = NDArray[np.float32]
Weights = dict[str, Array]
D_SAE, TOKENS, ROOM = 512, 200, 20  # the features of `orthogonal` lie in the first ROOM of D_IN directions
GRAPHS = ("encode.onnx", "encode_exact.onnx", "encode_gpu.onnx")


def orthogonal(kind: str, rng: np.random.Generator) -> tuple[Weights, Array]:
    """x is 1e4 times longer in directions that no feature has than in theirs."""
    weights = make_weights(D_SAE, kind)
    basis = np.linalg.qr(rng.standard_normal((D_IN, D_IN)))[0]
    weights["W_enc"] = (basis[:, :ROOM] @ rng.normal(0, 0.25, (ROOM, D_SAE))).astype(np.float32)
    long = rng.normal(0, 1e4, (TOKENS, D_IN - ROOM)) @ basis[:, ROOM:].T
    x = weights["b_dec"] + long + rng.normal(0, 1, (TOKENS, ROOM)) @ basis[:, :ROOM].T
    weights["b_enc"][:] = 0
    return weights, x.astype(np.float32)


def near_b_pre(kind: str, rng: np.random.Generator) -> tuple[Weights, Array]:
    """b_pre has a length of 5,000 and x differs from it by 1."""
    weights = make_weights(D_SAE, kind)
    weights["b_dec"] = rng.normal(0, 1000, D_IN).astype(np.float32)
    return weights, (weights["b_dec"] + rng.normal(0, 1, (TOKENS, D_IN))).astype(np.float32)


def near_bias(kind: str, rng: np.random.Generator) -> tuple[Weights, Array]:
    """b_enc takes away nearly all of what the products give."""
    weights, direction = make_weights(D_SAE, kind), rng.standard_normal(D_IN)
    x = weights["b_dec"] + 1000 * direction + rng.normal(0, 1, (TOKENS, D_IN))
    weights["b_enc"] = (-1000 * direction @ weights["W_enc"]).astype(np.float32)
    return weights, x.astype(np.float32)


def opposite(kind: str, rng: np.random.Generator) -> tuple[Weights, Array]:
    """The second half of x takes away what the first half gives, up to 1e-5 of it."""
    weights, half = make_weights(D_SAE, kind), D_IN // 2
    weights["W_enc"][half:] = weights["W_enc"][:half]
    c = rng.normal(0, 1000, (TOKENS, half))
    weights["b_dec"][:], weights["b_enc"][:] = 0, 0
    return weights, np.concatenate([c, rng.normal(0, 1e-2, (TOKENS, half)) - c], axis=1).astype(np.float32)


CASES: dict[str, Callable[[str, np.random.Generator], tuple[Weights, Array]]] = {
    one.__name__: one for one in (orthogonal, near_b_pre, near_bias, opposite)
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Give an exported bundle whose cut lies among the values of x, x, and what the witness keeps, by kind."""
    made: dict[str, tuple[Bundle, Array]] = {}

    def give(kind: str) -> tuple[Bundle, Array]:
        if kind not in made:
            weights, x = CASES[request.param](kind, np.random.default_rng(3))
            if kind != "token":
                z = np.sort(witness.pre_activations(weights, x), axis=1)
                weights["threshold"] = np.full(D_SAE, np.median(z[:, -K]), np.float32)
            path = tmp_path_factory.mktemp("cases") / kind
            bundle.write(path, weights, make_manifest(D_SAE, kind), sample=x[:96])
            export(path, graphs=("exact", "gpu"))
            made[kind] = bundle.read(path), x
        return made[kind]

    return give


def kept(read: Bundle, x: Array) -> witness.Matches:
    weights = read.weights()
    return witness.served(read.manifest.architecture, weights, witness.pre_activations(weights, x))


def opened(read: Bundle, graph: str) -> SAE:
    return load(read.path, graph=graph, threads=1)


@pytest.mark.parametrize("graph", GRAPHS)
def test_features_are_exact_up_to_what_float32_loses(case: Callable[[str], Any], kind: str, graph: str) -> None:
    read, x = case(kind)
    expected, lost = kept(read, x), witness.rounding(read.weights(), x)
    assert 1 < expected.kept.sum(axis=1).mean() < 40
    found = opened(read, graph).encode(x)
    assert witness.disagreement(expected, *slots_of(found), lost) is None
    # By the bound that holds for every order of the products; the tolerance is that of usual sums.
    proven = lost / 2e-6 * (D_IN + 2) * 2.0**-24
    error = np.abs(found.to_dense() - expected.z)[found.to_dense() > 0]
    assert (error <= proven[found.to_dense() > 0]).all()


def test_the_row_alone_does_not_say_what_float32_loses(case: Callable[[str], Any], request: Any) -> None:
    """Where x cancels, values are off by more than 1e-5 of the largest, and a check by that alone refuses them."""
    if (name := request.node.callspec.params["case"]) == "near_b_pre":
        pytest.skip("x - b_pre is exact in float32")
    read, x = case("mutual")
    fault = witness.disagreement(kept(read, x), *slots_of(opened(read, "encode.onnx").encode(x)))
    assert fault is not None, name


@pytest.mark.parametrize("kind", ["mutual"])
def test_an_error_beyond_the_tolerance_is_found(case: Callable[[str], Any], kind: str) -> None:
    read, x = case(kind)
    expected, lost = kept(read, x), witness.rounding(read.weights(), x)
    indices, values = slots_of(opened(read, "encode.onnx").encode(x))
    row, top = int(np.argmax(values[:, 0] > 0)), expected.z.max(axis=1)
    beyond = 3 * max(1e-5 * top[row], lost[row, indices[row, 0]])
    values[row, 0] += beyond
    assert "a value that is off by" in (witness.disagreement(expected, indices, values, lost) or "")


@pytest.mark.parametrize("norm", ["layer", "length"])
def test_a_norm_loses_what_it_subtracts(norm: str) -> None:
    """Rows whose numbers are nearly equal: their mean is 1e5 times their size."""
    rng = np.random.default_rng(0)
    weights = {name: array.astype(np.float32) for name, array in make_weights(D_SAE, "mutual").items()}
    x = (1e3 + rng.normal(0, 1e-2, (50, D_IN))).astype(np.float32)
    exact = witness.pre_activations(weights, x, norm)
    given, mean = x.astype(np.float32), x.mean(axis=1, keepdims=True, dtype=np.float32)
    size = np.sqrt(np.square(given - mean if norm == "layer" else given).sum(axis=1, keepdims=True) / (D_IN - 1))
    if norm == "layer":
        prepared = (given - mean) / (size + np.float32(1e-5))
    else:
        prepared = given / (size * np.sqrt(np.float32((D_IN - 1) / D_IN)))
    z = np.maximum((prepared - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    assert (np.abs(z - exact) <= witness.rounding(weights, x, norm)).all()


def test_decoding_loses_by_its_terms(tmp_path: Path) -> None:
    """Two features are nearly opposite, and their sum is 1e-6 of each."""
    weights = make_weights(D_SAE, "mutual")
    weights["W_dec"][1] = -weights["W_dec"][0] * np.float32(1 + 1e-6)
    weights["b_dec"][:] = 0
    bundle.write(tmp_path / "sae", weights, make_manifest(D_SAE, "mutual"))
    export(tmp_path / "sae", graphs=())
    indices, values = np.array([[0, 1]]), np.array([[1234.567, 1234.566]], np.float32)
    features = load(tmp_path / "sae").encode(np.zeros((1, D_IN), np.float32))
    made = type(features)(np.array([0, 2]), indices[0].astype(np.int32), values[0], D_SAE, (1,))
    lost = witness.decode_rounding(weights, indices, values)
    assert (
        witness.difference(witness.decode(weights, indices, values), load(tmp_path / "sae").decode(made), lost) is None
    )
