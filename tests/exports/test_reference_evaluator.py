"""Every graph agrees with the witness in the onnx package's own evaluator too.

A graph that only onnxruntime understands would fail here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import D_IN, joint, make_manifest, make_weights, make_x, reference, served
from numpy.typing import NDArray

from sae_runtime.bundle import folder as bundle
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

D_SAE = 512  # the smallest that has encode_exact.onnx
ENCODERS = ("encode.onnx", "encode_exact.onnx", "encode_gpu.onnx")
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[..., list[NDArray[Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give the outputs of a graph of an allocation."""
    paths: dict[str, Path] = {}

    def give(kind: str, name: str, **feed: NDArray[Any]) -> list[NDArray[Any]]:
        if kind not in paths:
            paths[kind] = tmp_path_factory.mktemp("reference") / kind
            bundle.write(paths[kind], make_weights(D_SAE, kind), make_manifest(D_SAE, kind))
            export(paths[kind], graphs=("exact", "gpu"))
        model = onnx.load(paths[kind] / name)
        # The evaluator does not know that an input with an initializer may be left out.
        wanted = {value.name for value in model.graph.input} - set(feed)
        defaults = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in wanted}
        outputs: Any = reference(model).run(None, {**defaults, **feed})
        return list(outputs)

    return give


@pytest.mark.parametrize("name", ENCODERS)
def test_the_reference_evaluator_encodes_as_the_witness(run: Run, kind: str, name: str) -> None:
    x = make_x(7)
    wide = {} if kind == "token" or name == "encode_gpu.onnx" else {"slots": np.array([D_SAE])}
    indices, values, *certain = run(kind, name, x=x, **wide)
    expected = served(kind, D_SAE, x)
    whole = expected.kept.sum(axis=1) <= values.shape[1]
    assert whole.any() and all((sure | ~whole).all() for sure in certain)
    cuts = tuple(cut[whole] if len(cut) == len(whole) else cut for cut in expected.cuts)
    expected = witness.Matches(expected.z[whole], expected.kept[whole], cuts)
    assert witness.disagreement(expected, indices[whole], values[whole]) is None


def test_the_reference_evaluator_applies_the_batch_rule(run: Run) -> None:
    x, valid = make_x(20), np.arange(20) % 5 != 3
    for kind in ("mutual", "feature"):
        indices, values = run(kind, "encode_joint.onnx", x=x, valid=valid)
        assert witness.disagreement(joint(kind, D_SAE, x, valid=valid), indices, values) is None


def test_the_reference_evaluator_decodes_as_the_witness(run: Run, kind: str) -> None:
    rng = np.random.default_rng(0)
    indices, values = rng.integers(0, D_SAE, (7, 4)), rng.gamma(2, 1, (7, 4)).astype(np.float32)
    (x_hat,) = run(kind, "decode.onnx", indices=indices, values=values)
    assert witness.difference(witness.decode(make_weights(D_SAE, kind), indices, values), x_hat) is None


def test_the_reference_evaluator_steers_as_the_witness(run: Run, kind: str) -> None:
    x = make_x(6)
    matches = served(kind, D_SAE, x)
    features = np.argsort(-matches.kept.sum(axis=0), kind="stable")[None, :3].repeat(2, axis=0)
    features[1, 2] = 500
    edits: Arrays = {
        "scale": np.array([[0.0, 0.5, 2.0], [1.0, 1.0, -1.0]], np.float32),
        "shift": np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]], np.float32),
        "low": np.full((2, 3), -1e30, np.float32),
        "high": np.array([[1e30, 1e30, 1.0], [2.0, 1e30, 1e30]], np.float32),
        "gate": np.random.default_rng(1).uniform(0, 1, (2, 3, 1)).astype(np.float32),
    }
    batch, f = x.reshape(2, 3, D_IN), np.where(matches.kept, matches.z, 0).reshape(2, 3, D_SAE)
    (y,) = run(kind, "steer.onnx", x=batch, features=features, **edits)
    assert witness.difference(witness.steer(make_weights(D_SAE, kind), batch, f, features, **edits), y) is None
    assert np.abs(y - batch).max() > 0.5
    np.testing.assert_array_equal(run(kind, "steer.onnx", x=batch)[0], batch)
