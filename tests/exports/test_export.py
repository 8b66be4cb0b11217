import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import D_IN, K, make_manifest, make_weights, make_x, run_graph
from numpy.typing import DTypeLike, NDArray

from sae_runtime import load
from sae_runtime.bundle import file_set, quota
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED, MANIFEST, SAMPLE, WEIGHTS, Bundle, BundleError
from sae_runtime.bundle.graphs import GRAPHS as TABLE
from sae_runtime.bundle.manifest import to_json
from sae_runtime.bundle.tensors import TensorSpec, map_tensor, read_header, save_tensors
from sae_runtime.exports.derived import active_activations, default_max_density
from sae_runtime.exports.export import BUILDERS, Builder, export
from sae_runtime.exports.graphs.steer import steer_graph

BundleOf = Callable[..., Path]
GRAPHS = {
    "token": {"encode.onnx", "decode.onnx", "steer.onnx"},
    "mutual": {"encode.onnx", "encode_joint.onnx", "decode.onnx", "steer.onnx"},
    "feature": {"encode.onnx", "encode_joint.onnx", "decode.onnx", "steer.onnx"},
}
# Name, type, shape, and whether it is optional. None means any size, and equal letters mean equal sizes.
Signature = list[tuple[str, DTypeLike, list[int | str | None], bool]]


def contract(name: str, kind: str, d_sae: int) -> tuple[Signature, Signature]:
    rows: Signature = [("indices", np.int64, ["n", None], False), ("values", np.float32, ["n", None], False)]
    x: Signature = [("x", np.float32, ["n", D_IN], False)]
    if name == "encode.onnx":
        threshold: Signature = [] if kind == "token" else [("threshold", np.float32, [None], True)]
        return [*x, *threshold, ("slots", np.int64, [1], True)], rows
    if name == "encode_joint.onnx":
        max_density: Signature = [("max_density", np.float64, [d_sae], True)] if kind == "feature" else []
        return [*x, ("valid", np.bool_, [None], True), ("k", np.float64, [], True), *max_density], rows
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
def test_graphs_have_the_inputs_and_outputs_of_the_contract(bundle_of: BundleOf, kind: str, d_sae: int) -> None:
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
                assert np.prod(tensor.dims) <= 2, f"the graph itself holds {tensor.name}"
                continue
            entry = {pair.key: pair.value for pair in tensor.external_data}
            assert int(entry["offset"]) + int(entry["length"]) <= sizes[entry["location"]]
            referred.add((entry["location"], tensor.name))
        assert (WEIGHTS, "b_dec") in referred
        assert ((DERIVED, "max_density") in referred) == (name == "encode_joint.onnx" and kind == "feature")


def test_equal_bundles_have_equal_graphs(copy_of: BundleOf, tmp_path: Path, kind: str) -> None:
    path = copy_of(kind)
    before, manifest = graph_bytes(path), (path / MANIFEST).read_bytes()
    export(path)
    assert graph_bytes(path) == before and (path / MANIFEST).read_bytes() == manifest
    bundle.write(tmp_path / "again", make_weights(150, kind), make_manifest(150, kind))
    export(tmp_path / "again")
    assert graph_bytes(tmp_path / "again") == before


def test_a_bundle_that_was_copied_gives_equal_outputs(bundle_of: BundleOf, tmp_path: Path, kind: str) -> None:
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


def test_derived_weights_of_feature_choice_are_its_max_densities(bundle_of: BundleOf) -> None:
    path = bundle_of("feature")
    specs = read_header(path / DERIVED)
    assert list(specs) == ["max_density"]
    max_density = map_tensor(path / DERIVED, specs["max_density"])
    allocation = bundle.read(path).manifest.allocation
    assert allocation is not None and allocation.quota is not None
    np.testing.assert_array_equal(max_density, quota.max_densities(allocation.quota, K, 150))
    with pytest.raises(ValueError, match="this bundle is of mutual choice"):
        default_max_density(bundle.read(bundle_of("mutual")))


def test_deleted_derived_weights_break_the_joint_graph_until_the_next_export(copy_of: BundleOf) -> None:
    path, x = copy_of("feature"), make_x(7)
    before = load(path).encode_batch(x).to_dense()
    (path / DERIVED).unlink()
    sae = load(path)
    assert sae.encode(x).l0().sum() > 0
    np.testing.assert_array_equal(sae.steer(x, []), x)
    assert sae.decode(sae.encode(x)).shape == x.shape
    np.testing.assert_array_equal(sae.encode_batch(x).to_dense(), before)  # max_density follows from the manifest
    with pytest.raises(BundleError, match=rf"{DERIVED} is missing.*, or run: sae-runtime export {path}"):
        bundle.read(path).graph("encode_joint.onnx")
    export(path)
    assert bundle.read(path).graph("encode_joint.onnx")


def test_altered_derived_weights_are_refused_until_the_next_export(copy_of: BundleOf) -> None:
    path = copy_of("feature")
    altered = bytearray((path / DERIVED).read_bytes())
    altered[-1] ^= 1
    (path / DERIVED).write_bytes(altered)
    with pytest.raises(BundleError, match=rf"{DERIVED} was altered.*, or run: sae-runtime export {path}"):
        bundle.read(path).graph("encode_joint.onnx")
    export(path)
    assert bundle.read(path).graph("encode_joint.onnx")


def beside(original: Bundle) -> Bundle:
    """The same bundle, with an offset of b_dec that is one number too small."""
    spec = original.specs["b_dec"]
    return dataclasses.replace(
        original, specs={**original.specs, "b_dec": dataclasses.replace(spec, offset=spec.offset - 4)}
    )


def spoilt(name: str) -> dict[str, Builder]:
    """Builders with one that reads b_dec at a wrong offset."""
    return {**BUILDERS, name: lambda original, specs: BUILDERS[name](beside(original), specs)}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in GRAPHS for name in sorted(GRAPHS[kind])])
def test_a_graph_that_disagrees_with_numpy_changes_nothing(copy_of: BundleOf, kind: str, name: str) -> None:
    path = copy_of(kind)
    before = contents(path)
    with pytest.raises(BundleError, match=rf"^{name} of {path} disagrees with numpy: .*; nothing was exported"):
        export(path, builders=spoilt(name), activations=make_x(50))
    assert contents(path) == before


def test_a_first_export_that_fails_leaves_no_graphs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "b"
    bundle.write(path, make_weights(150, kind), make_manifest(150, kind))
    with pytest.raises(BundleError, match="disagrees with numpy"):
        export(path, builders=spoilt("encode.onnx"))
    assert graph_bytes(path) == {} and leftovers(path) == []
    with pytest.raises(BundleError, match="not exported yet"):
        load(path)


def test_steering_that_moves_x_without_edits_changes_nothing(copy_of: BundleOf) -> None:
    def moving(original: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
        model = steer_graph(original)
        (y,) = model.graph.outputs
        factor = ir.tensor(np.float32(1 + 1e-6), name="factor")
        model.graph.register_initializer(ir.Value(name="factor", const_value=factor, type=ir.TensorType(factor.dtype)))
        node = ir.node("Mul", [y, model.graph.initializers["factor"]])
        model.graph.append(node)
        y.name, node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "moved", "y", y.type, y.shape
        model.graph.outputs[0] = node.outputs[0]
        return model

    with pytest.raises(BundleError, match=r"^steer.onnx of .* disagrees with numpy: without edits y differs from x"):
        export(copy_of("mutual"), builders={**BUILDERS, "steer.onnx": moving})


def test_an_export_that_is_killed_leaves_the_old_bundle_or_the_new_one(copy_of: BundleOf) -> None:
    """A new process exports for every change of the file system, and ends at once before that change."""
    path = copy_of("feature", 512, sampled=True)
    (path / "README.md").write_text("not ours")
    script = Path(__file__).parent.parent / "killed_export.py"
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    old, new, kills = map(int, done.stdout.split())
    assert old > 5 and new > 5 and kills == old + new


def test_the_next_reader_completes_an_interrupted_export(copy_of: BundleOf) -> None:
    path, x = copy_of("mutual", 512, sampled=True), make_x(7)
    export(path, activations=make_x(60))
    whole = contents(path)
    export(path, activations=make_x(50))
    staged = path / file_set.STAGED
    staged.mkdir()
    for name in ("encode.onnx", SAMPLE, MANIFEST):  # the export has moved the other files
        (staged / name).write_bytes(whole[name])
    for name in set(whole) - {"encode.onnx", SAMPLE, MANIFEST}:
        (path / name).write_bytes(whole[name])
    (staged / "encode_gpu.onnx.removed").touch()
    (path / "encode_gpu.onnx").touch()
    use_every_graph(path, x)
    assert contents(path) == whole


def use_every_graph(path: Path, x: NDArray[np.float32]) -> None:
    sae = load(path)
    sae.decode(sae.encode(x))
    for name in bundle.read(path).manifest.graphs:
        bundle.read(path).graph(name)
    sae.steer(x, [])


def test_a_full_disk_leaves_the_old_bundle(copy_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of("mutual")
    before = contents(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(path, activations=make_x(50))
    assert contents(path) == before


def test_export_leaves_other_files_in_the_folder(copy_of: BundleOf) -> None:
    path = copy_of("mutual")
    (path / "README.md").write_text("mine")
    (path / "labels.jsonl").write_text("{}")
    export(path)
    assert (path / "README.md").read_text() == "mine" and (path / "labels.jsonl").read_text() == "{}"


def test_the_table_of_graphs_says_what_bundles_have(bundle_of: BundleOf, kind: str) -> None:
    assert len({graph.file for graph in TABLE}) == len(TABLE) == len(BUILDERS)
    manifest = bundle.read(bundle_of(kind, 512)).manifest
    assert set(manifest.graphs) == {graph.file for graph in TABLE if graph.fits(manifest) and graph.by_default}
    for graph in TABLE:
        record = manifest.graphs.get(graph.file)
        assert record is None or record.row_independent == graph.row_independent
        assert record is None or graph.reads_derived or not record.derived


def test_activations_given_to_export_become_the_sample(tmp_path: Path) -> None:
    path, x = tmp_path / "b", make_x(50, seed=8)
    bundle.write(path, make_weights(512, "mutual"), make_manifest(512, "mutual"))
    export(path)
    assert bundle.read(path).sample() is None and not (path / SAMPLE).exists()
    export(path, activations=x)
    assert SAMPLE in bundle.read(path).manifest.files
    np.testing.assert_array_equal(bundle.read(path).sample(), x)
    export(path)
    np.testing.assert_array_equal(bundle.read(path).sample(), x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (make_x(5)[:, :-1], r"activations must be \[tokens, 24\], got \[5, 23\]; give those of the SAE's hook"),
        (make_x(0), r"activations must be \[tokens, 24\], got \[0, 24\]"),
        (make_x(5)[0], r"activations must be \[tokens, 24\], got \[24\]"),
        (np.where(np.arange(24) == 3, np.nan, make_x(5)), "activations hold NaN or Inf; drop those rows"),
    ],
)
def test_activations_that_do_not_fit_change_nothing(copy_of: BundleOf, x: NDArray[np.float32], message: str) -> None:
    path = copy_of("mutual")
    before = contents(path)
    with pytest.raises(ValueError, match=message):
        export(path, activations=x)
    assert contents(path) == before


def test_a_damaged_sample_is_refused(copy_of: BundleOf) -> None:
    path = copy_of("mutual", 512, sampled=True)
    original = bundle.read(path)
    altered = bytearray((path / SAMPLE).read_bytes())
    altered[-1] ^= 1
    (path / SAMPLE).write_bytes(altered)
    with pytest.raises(BundleError, match=f"{SAMPLE} was altered"):
        bundle.read(path)
    for x, message in (
        ({"x": make_x(5)[:, :-1]}, r"x is F32 \[5, 23\], expected F32 \[5, 24\]"),
        ({"x": make_x(5).astype(np.float64)}, r"x is F64 \[5, 24\], expected F32 \[5, 24\]"),
        ({"y": make_x(5)}, r"holds \['y'\], expected exactly \['x'\]"),
        ({"x": make_x(5), "y": make_x(5)}, r"holds \['x', 'y'\], expected exactly \['x'\]"),
        ({"x": np.full((5, 24), np.inf, np.float32)}, "holds NaN or Inf; make the bundle again"),
    ):
        save_tensors(path / SAMPLE, {name: np.ascontiguousarray(array) for name, array in x.items()})
        listed = {**original.manifest.files, SAMPLE: bundle.record(path / SAMPLE)}
        (path / MANIFEST).write_text(to_json(dataclasses.replace(original.manifest, files=listed)))
        with pytest.raises(BundleError, match=message):
            bundle.read(path)


def test_export_refuses_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no sae_runtime.json, so it is not a bundle"):
        export(tmp_path)


def test_features_are_active_on_the_activations_of_the_check(bundle_of: BundleOf, kind: str) -> None:
    """Without active features, the check would accept any graph."""
    weights = make_weights(150, kind)
    x = active_activations(bundle.read(bundle_of(kind)), np.random.default_rng(0), 24)
    assert x.shape == (24, D_IN) and x.dtype == np.float32
    assert not x[0].any() and (x[1] == weights["b_dec"]).all()
    l0 = load(bundle_of(kind)).encode(x).l0()
    assert (l0[2:] > 0).mean() > 0.9 and l0.sum() > 24


def test_a_bundle_of_links_is_refused_in_one_sentence(copy_of: BundleOf) -> None:
    path = copy_of("mutual")
    (path / WEIGHTS).rename(path / "blob")
    (path / WEIGHTS).symlink_to("blob")
    before = contents(path)
    with pytest.raises(BundleError, match="holds links, as a Hub cache does; copy the bundle's files into a folder$"):
        export(path)
    assert contents(path) == before and (path / WEIGHTS).is_symlink()


def test_hard_linked_weights_are_refused_in_one_sentence(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    path = copy_of("mutual")
    os.link(path / WEIGHTS, tmp_path / "another")
    with pytest.raises(BundleError, match="several hard links, which onnx refuses to read; copy the bundle$"):
        export(path)
