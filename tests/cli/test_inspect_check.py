"""`inspect --check` finds what a stranger wrote into derived.safetensors, though every hash is right."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from resealed import changed

from sae_runtime import load
from sae_runtime.bundle.folder import DERIVED, BundleError
from sae_runtime.bundle.tensors import read_header

CopyOf = Callable[..., Path]


def scaled(path: Path, name: str, factor: float) -> Path:
    """Multiply the numbers of an array of derived.safetensors, and seal the bundle again."""
    spec = read_header(path / DERIVED)[name]
    dtype = {"F32": np.float32, "F64": np.float64, "I64": np.int64}[spec.dtype]

    def change(data: bytes) -> bytes:
        array = np.frombuffer(data[spec.offset : spec.offset + spec.size], dtype)
        return data[: spec.offset] + (array * factor).astype(dtype).tobytes() + data[spec.offset + spec.size :]

    return changed(path, DERIVED, change)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_bundle_of_ours_computes_what_its_weights_say(bundle_of: Callable[..., Path], sampled: bool) -> None:
    path = bundle_of("feature", 512, sampled=sampled)
    found = json.loads(run("inspect", path, "--check", "--json").stdout)
    assert found["valid"] is True
    graphs = {*found["graphs"], DERIVED}
    assert {"encode.onnx", "encode_exact.onnx", "decode.onnx", "steer.onnx", "encode_joint.onnx"} < graphs
    assert found["check"] == dict.fromkeys(graphs)
    assert "all compute what the weights say" in run("inspect", path, "--check").stdout


@pytest.mark.parametrize(
    "name, factor, wrong",
    [
        ("W_enc_rows", 1.5, "encode_exact.onnx"),
        ("W_enc_rows", -1.0, "steer.onnx"),
        ("W_enc_rows", 1 + 2.0**-22, DERIVED),
        ("int8_bias", 0.0, "encode_exact.onnx"),
        ("max_density", 0.5, "encode_joint.onnx"),
        ("max_density", 1 + 1e-9, DERIVED),
    ],
)
def test_graphs_that_compute_something_else_are_named(
    copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch, name: str, factor: float, wrong: str
) -> None:
    monkeypatch.setattr("sae_runtime.bundle.opened.fault_of_derived", lambda *given: None)  # which sees most of these
    path = scaled(copy_of("feature", 512), name, factor)
    text = run("inspect", path, "--check")
    assert text.exit_code == 1 and len(text.stderr.splitlines()) == 1
    assert "computes something else than its weights say" in text.stderr and "load it with rebuild=True" in text.stderr
    assert "wrong" in text.stdout and "valid" not in text.stdout
    result = run("inspect", path, "--check", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["valid"] is False and found["check"][wrong] is not None
    assert run("inspect", path).exit_code == 0


@pytest.mark.parametrize("factor", [0, -1, 2])
def test_an_order_that_does_not_list_every_feature_is_refused(copy_of: CopyOf, factor: int) -> None:
    path = scaled(copy_of("feature", 512), "int8_order", factor)
    with pytest.raises(BundleError, match="^int8_order does not list each of the 512 features once; load with rebuild"):
        load(path, graph="encode_exact.onnx")
    assert "int8_order does not list" in refused("inspect", path)


def test_check_is_for_bundles() -> None:
    assert run("inspect", "a.onnx", "--check").exit_code == 2
