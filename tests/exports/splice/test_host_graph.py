"""Host graphs as people have them: older opsets, no shapes, other types, large weights, bodies and functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases_common import jaccard, true_features
from cases_hosts import dense
from conftest import D_IN, make_weights
from made_hosts import WORDS, host, layer, stream, weights
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator
from tiny_host import run

from sae_runtime import Edit
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.splice.host_graph import read_host
from sae_runtime.exports.splice.splicing import Splice, SplicedGraph, splice

BundleOf = Callable[..., Path]
IDS = np.array([[1, 2, 3, 11], [4, 5, 0, 7]])
D_SAE = 150
ASKED = {"ids": IDS, "sae_slots": np.array([D_SAE])}


def features_at(layers: int) -> NDArray[np.float64]:
    return true_features(make_weights(D_SAE, "mutual"), stream(IDS, layers).astype(np.float32))


def spliced(path: Path, bundle_of: BundleOf, hook: str = "layer.0", **settings: Any) -> SplicedGraph:
    return splice(path, [Splice(bundle=bundle_of("mutual", D_SAE), hook=hook, **settings)])


def assert_right(made: SplicedGraph, layers: int = 1, tolerance: float = 1e-5) -> None:
    """Features at the hook and outputs are numpy's, and an edit moves the output."""
    found = run(made.path, ASKED)
    expected = stream(IDS, 2)
    np.testing.assert_allclose(found["out"], expected, rtol=0, atol=tolerance * np.abs(expected).max())
    f = features_at(layers)
    assert (f > 0).any()
    np.testing.assert_allclose(dense(found, D_SAE), f, rtol=0, atol=10 * tolerance * f.max())
    edits = {f"sae_{name}": array for name, array in as_inputs([[Edit.add(3, 5.0)]], D_SAE).items()}
    assert np.abs(run(made.path, {"ids": IDS} | edits)["out"] - found["out"]).max() > 0.1


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 4), (11, 6), (13, 7), (14, 7), (17, 8)])
def test_a_graph_of_an_older_opset_without_shapes_is_read_and_edited(
    bundle_of: BundleOf, tmp_path: Path, opset: int, ir_version: int
) -> None:
    path = host(tmp_path / "host.onnx", opset=opset, ir_version=ir_version)
    made = spliced(path, bundle_of)
    assert made.path == tmp_path / "host_sae.onnx" and made.warnings == ()
    assert_right(made)
    plain, found = (run(graph, {"ids": IDS}, basic=True)["out"] for graph in (path, made.path))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    assert onnx.load(str(path)).opset_import[0].version == opset, "the host stays as it is"


def test_without_edits_a_converted_host_gives_the_bits_of_the_conversion(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = host(tmp_path / "host.onnx")
    ir.save(read_host(path).model, tmp_path / "later.onnx")
    for basic in (True, False):
        later, found = (
            run(graph, {"ids": IDS}, basic=basic)
            for graph in (
                tmp_path / "later.onnx",
                spliced(path, bundle_of).path if basic else tmp_path / "host_sae.onnx",
            )
        )
        np.testing.assert_array_equal(found["out"], later["out"])


def test_metadata_that_name_modules_survive_the_conversion(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = host(tmp_path / "host.onnx")
    proto = onnx.load(str(path))
    for node in proto.graph.node:
        scopes = ["", *node.name.strip("/").split("/")]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scopes))
        node.name = ""
    proto.metadata_props.add(key="license", value="MIT")
    onnx.save(proto, str(path))
    made = spliced(path, bundle_of)
    assert_right(made)
    assert {entry.key for entry in onnx.load(str(made.path)).metadata_props} == {"license", "sae_runtime.splice.sae"}


def test_operators_that_onnxruntime_has_without_a_domain_pass_the_converter(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    ones = helper.make_node("Constant", [], ["ones"], value=numpy_helper.from_array(np.ones(D_IN, np.float32)))
    norm = helper.make_node("LayerNormalization", ["rows", "ones"], ["x0"], name="/embed/LayerNormalization")
    path = host(tmp_path / "host.onnx", before=[ones, norm])
    made = spliced(path, bundle_of, "embed")
    assert made.splices[0].tensor == "x0"
    plain, found = (run(graph, {"ids": IDS}, basic=True)["out"] for graph in (path, made.path))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_a_width_that_onnx_cannot_infer_is_that_of_two_short_runs(bundle_of: BundleOf, tmp_path: Path) -> None:
    """An operator of onnxruntime's own, and heads put together again by a shape that is computed."""
    sizes = np.array([[0, 0, 4, -1], [0, 0, -1, 1]])
    split, last = (numpy_helper.from_array(array, "") for array in (sizes[0], np.array([4 * D_IN // 4])))
    nodes = [
        helper.make_node("FusedMatMul", ["rows", "eye"], ["own"], name="/embed/own", domain="com.microsoft"),
        helper.make_node("Constant", [], ["eye"], value=numpy_helper.from_array(np.eye(D_IN, dtype=np.float32))),
        helper.make_node("Constant", [], ["split"], value=split),
        helper.make_node("Reshape", ["own", "split"], ["heads"], name="/embed/split"),
        helper.make_node("Shape", ["own"], ["shape"], name="/embed/Shape"),
        helper.make_node("Constant", [], ["width"], value=last),
        helper.make_node("Constant", [], ["first"], value=numpy_helper.from_array(np.array([0, 1]))),
        helper.make_node("Gather", ["shape", "first"], ["bt"], name="/embed/Gather_1"),
        helper.make_node("Abs", ["width"], ["computed"], name="/embed/Abs"),
        helper.make_node("Concat", ["bt", "computed"], ["together"], name="/embed/Concat", axis=0),
        helper.make_node("Reshape", ["heads", "together"], ["x0"], name="/embed/Reshape"),
    ]
    path = host(tmp_path / "host.onnx", before=[nodes[1], nodes[0], *nodes[2:]])
    made = spliced(path, bundle_of, "embed")
    assert made.splices[0].tensor == "x0"
    assert_right(made, layers=0)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_host_of_another_type_is_edited_in_float32_and_keeps_its_bits(
    bundle_of: BundleOf, tmp_path: Path, dtype: int
) -> None:
    path = host(tmp_path / "host.onnx", dtype=dtype)
    made = spliced(path, bundle_of)
    assert_right(made, tolerance=2e-3)
    ir.save(read_host(path).model, tmp_path / "later.onnx")
    plain, found = (run(graph, {"ids": IDS}, basic=True)["out"] for graph in (tmp_path / "later.onnx", made.path))
    np.testing.assert_array_equal(found, plain)


def test_a_bfloat16_host_is_spliced_though_onnxruntime_does_not_run_it_here(
    bundle_of: BundleOf, tmp_path: Path
) -> None:
    made = spliced(host(tmp_path / "host.onnx", dtype=TensorProto.BFLOAT16), bundle_of, required=True)
    [warning] = made.warnings
    assert "the graph was not run, since onnxruntime here does not run the host either" in warning
    onnx.checker.check_model(str(made.path), full_check=True)
    model = onnx.load(str(made.path))
    evaluator = ReferenceEvaluator(model)
    asked = {"when": np.empty((1, 0), np.int64), "above": np.empty((1, 0), np.float32), "slots": np.array([D_SAE])}
    asked |= {"gate": np.ones((1, 1, 1), np.float32), "direction": np.zeros((1, 1, D_IN), np.float32)}
    asked |= as_inputs([[]], D_SAE)
    outputs = dict(
        zip(
            evaluator.output_names,
            evaluator.run(None, {"ids": IDS, **{f"sae_{k}": v for k, v in asked.items()}}),
            strict=True,
        )
    )
    f = features_at(1)
    found = dense(outputs, D_SAE)
    assert jaccard(found, f) > 0.95, "bfloat16 moves a few across their threshold"
    both = (found > 0) & (f > 0)
    np.testing.assert_allclose(found[both], f[both], rtol=0, atol=0.02 * f.max())


def test_weights_beyond_2_gigabytes_are_not_read(bundle_of: BundleOf, tmp_path: Path) -> None:
    """The word table is a sparse file of 3 GB; only the rows that a call looks up are read."""
    path = host(tmp_path / "host.onnx", external="host.data")
    proto = onnx.load(str(path), load_external_data=False)
    words = next(tensor for tensor in proto.graph.initializer if tensor.name == "words")
    start, rows = (tmp_path / "host.data").stat().st_size, 3 * 2**30 // (4 * D_IN)
    with (tmp_path / "host.data").open("r+b") as file:
        file.seek(-start % 4096 + start)
        offset = file.tell()
        file.write(weights()["words"].tobytes())
        file.truncate(offset + rows * 4 * D_IN)
    del words.external_data[:], words.dims[:]
    words.dims.extend([rows, D_IN])
    for key, value in (("location", "host.data"), ("offset", offset), ("length", rows * 4 * D_IN)):
        words.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    made = spliced(path, bundle_of)
    assert made.files["host.data"] == "referred"
    assert made.path.stat().st_size < 200_000
    assert (tmp_path / "host.data").stat().st_blocks * 512 < 2**20, "the file stays sparse"
    assert_right(made)


def test_small_weights_in_other_files_are_found_by_the_inference(bundle_of: BundleOf, tmp_path: Path) -> None:
    sizes = numpy_helper.from_array(np.array([0, -1, D_IN]), "sizes")
    reshape = helper.make_node("Reshape", ["rows", "sizes"], ["x0"], name="/embed/Reshape")
    path = host(tmp_path / "host.onnx", before=[reshape])
    proto = onnx.load(str(path))
    proto.graph.initializer.append(sizes)
    onnx.save(proto, str(path), save_as_external_data=True, location="host.data", size_threshold=0)
    assert_right(spliced(path, bundle_of, "embed"), layers=0)


def test_initializers_that_are_inputs_too_stay_optional(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = host(tmp_path / "host.onnx", opset=9, ir_version=3)
    proto = onnx.load(str(path))
    for name, array in weights().items():
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    onnx.save(proto, str(path))
    made = spliced(path, bundle_of)
    assert_right(made)
    other = run(made.path, {"ids": IDS, "words": np.zeros((WORDS, D_IN), np.float32)})["out"]
    np.testing.assert_array_equal(other, 0)


def test_functions_of_a_model_are_taken_apart(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = host(tmp_path / "host.onnx")
    proto = onnx.load(str(path))
    nodes, opsets = layer(0, "y"), [helper.make_opsetid("", 14)]
    for node in nodes:
        node.input[:] = ["x" if name == "x0" else name for name in node.input]
    proto.functions.append(helper.make_function("own", "Layer", ["x", "w0"], ["y"], nodes, opsets))
    call = helper.make_node("Layer", ["x0", "w0"], ["/layer.0/Add_output"], name="/layer.0/Layer", domain="own")
    kept = [node for node in proto.graph.node if not node.name.startswith("/layer.0/")]
    del proto.graph.node[:]
    proto.graph.node.extend([kept[0], call, *kept[1:]])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(proto, str(path))
    made = spliced(path, bundle_of)
    assert made.splices[0].tensor == "/layer.0/Add_output"
    assert_right(made)
    inner = splice(path, [Splice(bundle=bundle_of("mutual", D_SAE), hook="layer.0.mlp")], tmp_path / "inner.onnx")
    assert inner.splices[0].tensor != made.splices[0].tensor


def with_an_if(path: Path, *, everything: bool) -> Path:
    """A host whose second layer, or whose layers all, are in the branches of an If."""
    proto = onnx.load(str(host(path)))
    inner = [node for node in proto.graph.node if everything or node.name.startswith("/layer.1")]
    outer = [node for node in proto.graph.node if node not in inner]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branch = helper.make_graph(inner, "branch", [], [out])
    other = helper.make_graph(inner, "other", [], [out])
    del proto.graph.node[:]
    choice = helper.make_node(
        "If", ["use_cache_branch"], ["out"], name="optimum::if", then_branch=branch, else_branch=other
    )
    proto.graph.node.extend([*outer, choice])
    proto.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    onnx.save(proto, str(path))
    return path


def test_a_merged_decoder_is_refused_with_what_to_do_instead(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = with_an_if(tmp_path / "decoder_model_merged.onnx", everything=True)
    with pytest.raises(ValueError, match=r"merged decoder.*splice decoder_with_past_model\.onnx.*export-model"):
        spliced(path, bundle_of)


def test_a_hook_inside_a_branch_is_refused_and_one_outside_is_taken(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = with_an_if(tmp_path / "host.onnx", everything=False)
    for hook in ("layer.1", "tensor:/layer.1/mlp", "input:layer.1.mlp"):
        with pytest.raises(ValueError, match="is inside the If node optimum::if .* main graph alone; hook"):
            spliced(path, bundle_of, hook)
    made = spliced(path, bundle_of)
    found = run(made.path, ASKED | {"use_cache_branch": np.array([True])})
    f = features_at(1)
    np.testing.assert_allclose(dense(found, D_SAE), f, rtol=0, atol=1e-4 * f.max())


def test_a_conversion_that_changes_the_model_is_refused(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = version_converter.convert_version

    def wrong(proto: Any, opset: int) -> Any:
        made = convert(proto, opset)
        next(node for node in made.graph.node if node.op_type == "Relu").op_type = "Abs"
        return made

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    with pytest.raises(
        ValueError, match=r"something else after .* from opset 14 .*out by .*export it again with opset"
    ):
        spliced(host(tmp_path / "host.onnx"), bundle_of)
    assert not (tmp_path / "host_sae.onnx").exists()


def test_what_the_converter_refuses_is_refused_in_a_sentence(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(proto: Any, opset: int) -> Any:
        raise RuntimeError("BaseConverter.h:66: adapter_lookup:\n No Adapter From Version $16 for Upsample")

    monkeypatch.setattr(version_converter, "convert_version", refuse)
    with pytest.raises(ValueError, match=r"has opset 14, and onnx cannot bring it to opset 18 \(.*\); export it again"):
        spliced(host(tmp_path / "host.onnx"), bundle_of)


def test_a_host_that_quantises_over_the_batch_is_spliced_with_a_warning(bundle_of: BundleOf, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["rows"], ["q", "scale", "zero"], name="/embed/q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x0"], name="/embed/d"),
    ]
    made = spliced(host(tmp_path / "host.onnx", before=nodes), bundle_of)
    [warning] = made.warnings
    assert "range over the whole batch (DynamicQuantizeLinear)" in warning and "each other" in warning
    by_size = np.argsort(np.abs(weights()["words"]).max(axis=1))
    quiet, loud = by_size[:4], by_size[-4:]
    one, both = (
        run(made.path, ASKED | {"ids": ids})["sae_values"][0] for ids in (quiet[None], np.stack([quiet, loud]))
    )
    assert 0 < np.abs(one - both).max() < 0.2 * one.max(), "the warning is true"
