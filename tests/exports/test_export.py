import dataclasses
import errno
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import D_IN, K, make_manifest, make_weights, make_x, run_graph, with_b_pre
from numpy.typing import DTypeLike, NDArray

from sae_runtime import bundle, load, quota
from sae_runtime.bundle import DERIVED, MANIFEST, WEIGHTS, Bundle, BundleError
from sae_runtime.exports.derived import default_cap
from sae_runtime.exports.encode import encode_graph
from sae_runtime.exports.export import export, sample
from sae_runtime.exports.graph import Graph
from sae_runtime.tensors import map_tensor, read_header

module = importlib.import_module("sae_runtime.exports.export")  # the package has a function of that name

BundleOf = Callable[..., Path]
GRAPHS = {
    "token": {"encode.onnx", "decode.onnx", "steer.onnx"},
    "mutual": {"encode.onnx", "encode_joint.onnx", "decode.onnx", "steer.onnx"},
    "feature": {"encode.onnx", "encode_joint.onnx", "decode.onnx", "steer.onnx"},
}
# Name, type, shape and optional or not; None stands for any size, and equal letters for equal sizes.
Signature = list[tuple[str, DTypeLike, list[int | str | None], bool]]


def contract(name: str, kind: str, d_sae: int) -> tuple[Signature, Signature]:
    rows: Signature = [("indices", np.int64, ["n", None], False), ("values", np.float32, ["n", None], False)]
    x: Signature = [("x", np.float32, ["n", D_IN], False)]
    if name == "encode.onnx":
        theta: Signature = [] if kind == "token" else [("theta", np.float32, [None], True)]
        return [*x, *theta, ("width", np.int64, [1], True)], rows
    if name == "encode_joint.onnx":
        cap: Signature = [("cap", np.float64, [d_sae], True)] if kind == "feature" else []
        return [*x, ("valid", np.bool_, [None], True), ("k", np.float64, [], True), *cap], rows
    if name == "decode.onnx":
        return rows, [("x_hat", np.float32, ["n", D_IN], False)]
    numbers: Signature = [(number, np.float32, [None, None], True) for number in ("scale", "shift", "low", "high")]
    return [
        ("x", np.float32, ["b", "t", D_IN], False),
        ("features", np.int64, [None, None], True),
        *numbers,
        ("gate", np.float32, [None, None, None], True),
    ], [("y", np.float32, ["b", "t", D_IN], False)]


def graph_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.onnx"))}


def leftovers(path: Path) -> list[str]:
    return [file.name for file in path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_the_graph_contract(bundle_of: BundleOf, kind: str, d_sae: int) -> None:
    path = bundle_of(kind, d_sae)
    assert {file.name for file in path.glob("*.onnx")} == GRAPHS[kind]
    for name in GRAPHS[kind]:
        model = onnx.load(path / name, load_external_data=False)
        optional = {tensor.name for tensor in model.graph.initializer}
        inputs, outputs = contract(name, kind, d_sae)
        for values, expected in ((model.graph.input, inputs), (model.graph.output, outputs)):
            assert [value.name for value in values] == [row[0] for row in expected]
            for value, (label, dtype, shape, default) in zip(values, expected, strict=True):
                tensor = value.type.tensor_type
                assert tensor.elem_type == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), label
                sizes = [size.dim_param or size.dim_value for size in tensor.shape.dim]
                assert len(sizes) == len(shape), label
                for size, wanted in zip(sizes, shape, strict=True):
                    assert isinstance(size, str) if wanted is None else size == wanted, label
                assert (label in optional) == default, label


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_graphs_are_small_standard_and_refer_to_the_weights(bundle_of: BundleOf, kind: str, d_sae: int) -> None:
    path = bundle_of(kind, d_sae)
    sizes = {file: (path / file).stat().st_size for file in (WEIGHTS, DERIVED) if (path / file).exists()}
    for name in GRAPHS[kind]:
        assert (path / name).stat().st_size < 20_000
        onnx.checker.check_model(str(path / name), full_check=True)
        model = onnx.load(path / name, load_external_data=False)
        assert model.ir_version == 10
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
        referred = set()
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert np.prod(tensor.dims) <= 2, f"{tensor.name} lies in the graph"
                continue
            entry = {pair.key: pair.value for pair in tensor.external_data}
            assert int(entry["offset"]) + int(entry["length"]) <= sizes[entry["location"]]
            referred.add((entry["location"], tensor.name))
        assert (WEIGHTS, "b_dec") in referred
        assert ((DERIVED, "cap") in referred) == (name == "encode_joint.onnx" and kind == "feature")


def test_equal_bundles_have_equal_graphs(copy_of: BundleOf, tmp_path: Path, kind: str) -> None:
    path = copy_of(kind)
    before, manifest = graph_bytes(path), (path / MANIFEST).read_bytes()
    export(path)
    assert graph_bytes(path) == before and (path / MANIFEST).read_bytes() == manifest
    bundle.write(tmp_path / "again", make_weights(150, kind), make_manifest(150, kind))
    export(tmp_path / "again")
    assert graph_bytes(tmp_path / "again") == before


def test_a_bundle_works_where_it_was_copied_to(bundle_of: BundleOf, tmp_path: Path, kind: str) -> None:
    x, path = make_x(7), tmp_path / "deep er" / "b"
    expected = {name: run_graph(bundle_of(kind), name, x=x) for name in GRAPHS[kind] if name.startswith("encode")}
    shutil.copytree(bundle_of(kind), path)
    for name, outputs in expected.items():
        for found, wanted in zip(run_graph(path, name, x=x), outputs, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert load(path).encode(x).l0().sum() > 0


def test_export_returns_and_records_what_it_wrote(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, kind), make_manifest(150, kind))
    manifest = export(path).manifest
    assert manifest == bundle.read(path).manifest
    assert {name for name, record in manifest.graphs.items() if record.row_independent} == GRAPHS[kind] - {
        "encode_joint.onnx"
    }
    assert set(manifest.graphs) == GRAPHS[kind]
    assert (DERIVED in manifest.files) == (path / DERIVED).exists() == (kind == "feature")
    assert leftovers(path) == []


def test_derived_weights_are_the_caps(bundle_of: BundleOf) -> None:
    path = bundle_of("feature")
    specs = read_header(path / DERIVED)
    assert list(specs) == ["cap"]
    cap = map_tensor(path / DERIVED, specs["cap"])
    allocation = bundle.read(path).manifest.allocation
    assert allocation is not None and allocation.quota is not None
    np.testing.assert_array_equal(cap, quota.caps(allocation.quota, K, 150))
    with pytest.raises(ValueError, match="this bundle is of mutual choice"):
        default_cap(bundle.read(bundle_of("mutual")))


def test_deleted_derived_weights_break_the_joint_graph_until_exported(copy_of: BundleOf) -> None:
    path, x = copy_of("feature"), make_x(7)
    before = load(path).encode_batch(x).to_dense()
    (path / DERIVED).unlink()
    sae = load(path)
    assert sae.encode(x).l0().sum() > 0
    np.testing.assert_array_equal(sae.steer(x, []), x)
    assert sae.decode(sae.encode(x)).shape == x.shape
    np.testing.assert_array_equal(sae.encode_batch(x).to_dense(), before)  # caps follow from the manifest
    with pytest.raises(BundleError, match=rf"{DERIVED} is missing.*; run: sae-runtime export {path}"):
        bundle.read(path).graph("encode_joint.onnx")
    export(path)
    assert bundle.read(path).graph("encode_joint.onnx").exists()


def test_altered_derived_weights_are_refused_until_exported(copy_of: BundleOf) -> None:
    path = copy_of("feature")
    altered = bytearray((path / DERIVED).read_bytes())
    altered[-1] ^= 1
    (path / DERIVED).write_bytes(altered)
    with pytest.raises(BundleError, match=rf"{DERIVED} was altered.*; run: sae-runtime export {path}"):
        bundle.read(path).graph("encode_joint.onnx")
    export(path)
    assert bundle.read(path).graph("encode_joint.onnx").exists()


def beside(spoilt: Bundle) -> Bundle:
    """The same bundle, where b_dec is said to lie one number before its place."""
    spec = spoilt.specs["b_dec"]
    return dataclasses.replace(
        spoilt, specs={**spoilt.specs, "b_dec": dataclasses.replace(spec, offset=spec.offset - 4)}
    )


BUILDERS = {
    "encode.onnx": "encode_graph",
    "decode.onnx": "decode_graph",
    "steer.onnx": "steer_graph",
    "encode_joint.onnx": "joint_graph",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in GRAPHS for name in sorted(GRAPHS[kind])])
def test_a_graph_that_computes_something_else_is_not_left(
    copy_of: BundleOf, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    path, real = copy_of(kind), getattr(module, BUILDERS[name])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(module, BUILDERS[name], lambda original, *rest: real(beside(original), *rest))
    with pytest.raises(BundleError, match=rf"^{name} of {path} disagrees with numpy: .*; the graph was left out"):
        export(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_first_export_that_fails_leaves_no_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, kind), make_manifest(150, kind))
    monkeypatch.setattr(module, "encode_graph", lambda original: encode_graph(beside(original)))
    with pytest.raises(BundleError, match="disagrees with numpy"):
        export(path)
    assert graph_bytes(path) == {} and leftovers(path) == []
    with pytest.raises(BundleError, match="not exported yet"):
        load(path)


def test_steering_that_moves_x_without_edits_is_not_left(copy_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Moving(Graph):
        def output(self, value: ir.Value, name: str, dtype: DTypeLike, shape: "list[int | str]") -> None:  # type: ignore[override]
            if name == "y":
                value = self.op("Mul", value, self.constant(1 + 1e-6, np.float32))
            super().output(value, name, dtype, shape)

    monkeypatch.setattr("sae_runtime.exports.steer.Graph", Moving)
    with pytest.raises(BundleError, match=r"^steer.onnx of .* disagrees with numpy: without edits y differs from x"):
        export(copy_of("mutual"))


@pytest.mark.parametrize("survives", range(5))  # renames before the interruption; the last one is the manifest's
def test_an_interrupted_export_is_mended_by_the_next(
    copy_of: BundleOf, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    path, x, renames, real = copy_of("mutual"), make_x(7), 0, os.replace

    made = Graph.model

    def other_release(graph: Graph) -> ir.Model:
        model = made(graph)
        model.producer_name = "another release"
        return model

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "model", other_release)
        export(path)
    other = graph_bytes(path)

    def replace(source: Path, target: Path) -> None:
        nonlocal renames
        if renames == survives:
            raise KeyboardInterrupt
        renames += 1
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            export(path)
    assert leftovers(path) == []
    assert sum(graph_bytes(path)[name] != other[name] for name in other) == survives
    if survives == 0:
        load(path).encode_batch(x)
    else:
        with pytest.raises(BundleError, match=rf"altered.*; run: sae-runtime export {path}"):
            use_every_graph(path, x)
    export(path)
    use_every_graph(path, x)
    assert all(graph_bytes(path)[name] != other[name] for name in other)


def use_every_graph(path: Path, x: NDArray[np.float32]) -> None:
    sae = load(path)
    sae.decode(sae.encode(x))
    bundle.read(path).graph("encode_joint.onnx")
    sae.steer(x, [])


def test_a_full_disk_leaves_the_old_graphs(copy_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("mutual")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_export_refuses_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no sae_runtime.json, so it is not a bundle"):
        export(tmp_path)


def test_on_the_sample_features_fire(bundle_of: BundleOf, kind: str) -> None:
    """A check against the witness on activations where nothing fires would pass for any graph."""
    weights = make_weights(150, kind)
    x = sample(make_manifest(150, kind).encoder, with_b_pre(weights), np.random.default_rng(0))
    assert x.shape == (24, D_IN) and x.dtype == np.float32
    assert not x[0].any() and (x[1] == weights["b_dec"]).all()
    l0 = load(bundle_of(kind)).encode(x).l0()
    assert (l0[2:] > 0).mean() > 0.9 and l0.sum() > 24


def test_hard_linked_weights_are_one_sentence(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    path = copy_of("mutual")
    os.link(path / WEIGHTS, tmp_path / "another")
    with pytest.raises(BundleError, match="several hard links, which onnx refuses to read; copy the bundle$"):
        export(path)
