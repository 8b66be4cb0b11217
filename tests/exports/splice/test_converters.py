"""What tools that rewrite graphs do to a spliced graph, as docs/guides/steering.md says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import pytest
from documents import table
from onnx import version_converter
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from tiny_host import HOOKS, host_graph, run, some_ids

from sae_runtime import Edit
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.splice.splicing import Splice, splice

pytestmark = pytest.mark.filterwarnings("ignore")  # the tools' own
BundleOf = Callable[..., Path]
D_SAE = 150


def saved_by_onnxruntime(path: Path, out: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_four_bits(path: Path, out: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(str(path)), block_size=16)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def fused(path: Path, out: Path) -> None:
    optimizer.optimize_model(str(path), model_type="bert", num_heads=2, hidden_size=24, opt_level=0).save_model_to_file(
        str(out)
    )


def through(change: Callable[[Any], Any]) -> Callable[[Path, Path], object]:
    return lambda path, out: onnx.save(change(onnx.load(str(path))), str(out))


TOOLS: dict[str, Callable[[Path, Path], object]] = {
    "onnx.version_converter": through(lambda proto: version_converter.convert_version(proto, 22)),
    "onnxscript.optimizer": through(onnxscript.optimizer.optimize),
    "onnxruntime, a saved optimised graph": saved_by_onnxruntime,
    "onnxruntime.transformers.optimizer": fused,
    "quantize_dynamic": lambda path, out: quantize_dynamic(str(path), str(out)),
    "MatMulNBitsQuantizer": in_four_bits,
    "onnxruntime.transformers.float16": through(lambda proto: convert_float_to_float16(proto, keep_io_types=True)),
}


def test_a_rewritten_graph_does_what_the_document_says(bundle_of: BundleOf, tmp_path: Path) -> None:
    said = {name.strip("`"): effect for name, effect in table("guides/steering.md", "tool, on a spliced graph")}
    assert set(said) == set(TOOLS)
    path = splice(host_graph("bert"), [Splice(bundle=bundle_of("mutual", D_SAE), hook=HOOKS["bert"])], tmp_path).path
    edits = {f"sae_{name}": array for name, array in as_inputs([[Edit.set(3, 5.0)]], D_SAE).items()}
    feed = some_ids(2, 7) | edits | {"sae_slots": np.array([16])}
    expected = run(path, feed)
    for name, tool in TOOLS.items():
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        tool(path, out)
        try:
            found = run(out, feed)
        except Exception:  # onnxruntime has an exception class for each status code
            assert said[name].startswith("breaks"), name
            continue
        assert not said[name].startswith("breaks"), name
        far = np.abs(found["sae_values"] - expected["sae_values"]).max() / expected["sae_values"].max()
        assert (far > 1e-3) == ("quantises the SAE too" in said[name]), (name, far)
        assert {"sae_indices", "sae_values"} <= set(found)


def test_a_host_that_was_converted_to_float16_first_takes_a_splice(bundle_of: BundleOf, tmp_path: Path) -> None:
    half = convert_float_to_float16(onnx.load(str(host_graph("bert"))), keep_io_types=True)
    onnx.save(half, str(tmp_path / "half.onnx"))
    path = splice(tmp_path / "half.onnx", [Splice(bundle=bundle_of("mutual", D_SAE), hook=HOOKS["bert"])]).path
    exact = splice(host_graph("bert"), [Splice(bundle=bundle_of("mutual", D_SAE), hook=HOOKS["bert"])], tmp_path / "x")
    edits = {f"sae_{name}": array for name, array in as_inputs([[Edit.set(3, 5.0)]], D_SAE).items()}
    feed = some_ids(2, 7) | edits
    found, expected = (run(graph, feed)["last_hidden_state"] for graph in (path, exact.path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())
