from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import D_IN, make_weights, make_x, run_graph, served
from numpy_block import run_numpy

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.splice import insert

CopyOf = Callable[..., Path]
D_SAE = 150


def by_the_docstring(kind: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after the numpy code in the module's docstring ran."""

    def encode(x: Any) -> Any:
        matches = served(kind, D_SAE, x.reshape(-1, D_IN))
        return np.where(matches.kept, matches.z, 0).reshape(*x.shape[:2], D_SAE)

    return run_numpy(insert, **names, **make_weights(D_SAE, kind), encode=encode)


@pytest.mark.parametrize("replace", [False, True])
def test_a_splice_is_the_numpy_of_its_docstring(copy_of: CopyOf, kind: str, replace: bool) -> None:
    folder, x = copy_of(kind, D_SAE), make_x(12).reshape(2, 6, D_IN)
    edits = as_inputs([[Edit.set(3, 4.0), Edit.add(7, 2.0)], [Edit.cap(5, 2.5), Edit.scale(9, 3.0)]], D_SAE)
    rng = np.random.default_rng(0)
    inputs = edits | {
        "gate": rng.uniform(0, 1, (2, 6, 1)).astype(np.float32),
        "direction": rng.normal(0, 1, (2, 1, D_IN)).astype(np.float32),
        "when": np.array([[1], [2]]),
        "above": np.array([[-1], [0]], np.float32),
    }
    model = insert.insert_graph(bundle.read(folder), ir.DataType.FLOAT, read=True, edit=True, replace=replace)
    ir.save(model, folder / "part.onnx")
    indices, values, y = run_graph(folder, "part.onnx", x=x, slots=np.array([6]), **inputs)
    expected = by_the_docstring(kind, inputs | {"x": x, "slots": 6, "replace": replace})
    assert 0 < expected["holds"].mean() < 1
    np.testing.assert_allclose(values, expected["values"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(indices, expected["indices"])
    np.testing.assert_allclose(y, expected["y"], rtol=1e-4, atol=1e-4)
