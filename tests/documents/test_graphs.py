"""docs/reference/graphs.md says what fresh graphs have: names, types, shapes, defaults and metadata."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import D_IN, K, make_manifest, make_weights
from documents import DOCS
from native import native
from tiny_host import HOOKS, host_graph

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.graphs import GRAPHS
from sae_runtime.bundle.splices import Spliced
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice

PAGE = (DOCS / "reference" / "graphs.md").read_text()
TYPES = {"f32": "FLOAT", "f64": "DOUBLE", "i64": "INT64", "bool": "BOOL"}
LARGEST = float(np.finfo(np.float32).max)
D_SAE = 512  # the least that encode_exact.onnx takes
Row = dict[str, str]


def rows(heading: str, first: str) -> list[Row]:
    """The rows of the table below a heading whose first column is `first`, by the names of their columns."""
    below = PAGE.partition(f"# {heading}\n")[2]
    assert below, f"the page has no heading {heading!r}"
    (table,) = re.findall(rf"^\| {first} \|.*\n(?:\|.*\n)+", below.partition("\n#")[0], flags=re.MULTILINE)
    names, _, *lines = ([cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table.splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def dims(shape: str) -> list[str]:
    """The dimensions of the first of the shapes that a cell gives: "[b or 1, e]" is b, e."""
    inner = re.findall(r"\[([^]]*)\]", shape)[0]
    return [part.split(" or ")[0] for part in inner.split(", ")] if inner else []


def fits(said: Row, value: Any, sizes: Mapping[str, int]) -> bool:
    """Whether an input or output has the type and the shape that its row says."""
    found, expected = value.type.tensor_type, dims(said["shape"])
    if onnx.TensorProto.DataType.Name(found.elem_type) != TYPES[said["type"]] or len(found.shape.dim) != len(expected):
        return False
    sized = zip(found.shape.dim, expected, strict=True)
    return all(not dim.dim_value or dim.dim_value == sizes.get(name, 1) for dim, name in sized)


def default(proto: Any, name: str) -> Any:
    """The default of an input as numpy, "outside" for one in a weight file, None for an input that has none."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return "outside" if tensor.external_data else onnx.numpy_helper.to_array(tensor)
    return None


def has_default(said: str, found: Any, given: Mapping[str, float]) -> bool:
    """Whether a default is what the cell says: none, empty, the bundle's weights, or one number."""
    if said == "none" or found is None:
        return said == "none" and found is None
    if said == "the bundle's" or isinstance(found, str):
        return said == "the bundle's" and isinstance(found, str)
    if said == "empty":
        return bool(found.size == 0)
    number = given[said] if said in given else float({"true": "1"}.get(said, said))
    return bool((found.astype(float) == number).all())


def described(proto: Any, inputs: list[Row], outputs: list[Row], sizes: Mapping[str, int], **given: float) -> None:
    """Assert that a graph has the inputs and outputs of these rows, and no others."""
    assert (proto.ir_version, [(one.domain, one.version) for one in proto.opset_import]) == (10, [("", 21)])
    for side, listed, values in (("in", inputs, proto.graph.input), ("out", outputs, proto.graph.output)):
        found = {value.name: value for value in values}
        assert [row[side] for row in listed if not fits(row, found.pop(row[side]), sizes)] == []
        assert not found, "the page does not list them"
    for row in inputs:
        assert has_default(row["default"], default(proto, row["in"]), given), row


def loaded(path: Path) -> Any:
    return onnx.load(str(path), load_external_data=False)


def inside(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from inside(attribute.g)


@pytest.fixture(scope="module", params=["token", "mutual", "feature"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("graphs") / request.param
    bundles.write(path, make_weights(D_SAE, request.param), make_manifest(D_SAE, request.param))
    export(path, graphs=["exact", "gpu"])
    return request.param, path


def test_the_graphs_of_a_bundle_are_those_of_the_page(bundle: tuple[str, Path]) -> None:
    kind, path = bundle
    slots = bundles.read(path).manifest.slots
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_IN, "slots": slots}
    given = {"the manifest's": slots, "the allocation's": K, "largest": LARGEST, "-largest": -LARGEST}
    for graph in ("encode", "encode_exact", "encode_gpu"):
        listed = [rows("encode.onnx, encode_exact.onnx, encode_gpu.onnx", first) for first in ("in", "out")]
        inputs, outputs = (
            [r for r in part if r["graphs"] == "all" or graph in r["graphs"].split(", ")] for part in listed
        )
        inputs = [row for row in inputs if kind != "token" or row["in"] != "threshold"]
        described(loaded(path / f"{graph}.onnx"), inputs, outputs, sizes, **given)
    decode = [row for row in rows("decode.onnx", "in") if row["in"] != "x"]
    described(loaded(path / "decode.onnx"), decode, rows("decode.onnx", "out"), sizes, **given)
    described(loaded(path / "steer.onnx"), rows("steer.onnx", "in"), rows("steer.onnx", "out"), sizes, **given)
    assert (path / "encode_joint.onnx").exists() == (kind != "token")
    if kind != "token":
        inputs = [row for row in rows("encode_joint.onnx", "in") if kind == "feature" or row["in"] != "max_density"]
        described(loaded(path / "encode_joint.onnx"), inputs, rows("encode_joint.onnx", "out"), sizes, **given)
    assert {node.domain for file in path.glob("*.onnx") for node in inside(loaded(file).graph)} == {""}


def test_the_page_lists_the_graphs_that_there_are() -> None:
    assert [row["graph"] for row in rows("The graphs of a bundle", "graph")] == [graph.file for graph in GRAPHS]


@pytest.mark.parametrize("norm", ["layer", "length"])
def test_decode_takes_the_activation_of_an_sae_with_a_norm(norm: str, tmp_path: Path) -> None:
    path = native(tmp_path / "sae", selection="topk", k=6, pre_bias=True, norm=norm)
    sizes = {"d_in": D_IN, "d_out": D_IN}
    described(loaded(path / "decode.onnx"), rows("decode.onnx", "in"), rows("decode.onnx", "out"), sizes)


def test_decode_gives_what_a_transcoder_reconstructs(tmp_path: Path) -> None:
    path = native(tmp_path / "sae", selection="topk", k=6, pre_bias=False, d_out=7, skip=True)
    sizes = {"d_in": D_IN, "d_out": 7}
    described(loaded(path / "decode.onnx"), rows("decode.onnx", "in"), rows("decode.onnx", "out"), sizes)
    assert not (path / "steer.onnx").exists()


@pytest.mark.parametrize("required", [False, True])
def test_a_spliced_graph_is_that_of_the_page(required: bool, bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    host = loaded(host_graph("bert"))
    path = splice(
        host_graph("bert"),
        [Splice(bundle=bundle_of("mutual"), hook=HOOKS["bert"], required=required)],
        tmp_path / "model",
    ).path
    whole, part = loaded(path), loaded(path.with_name("features.onnx"))
    inputs, outputs = rows("A spliced model", "in"), rows("A spliced model", "out")
    own = {value.name for value in (*host.graph.input, *host.graph.output)}
    for proto, some in ((whole, inputs), (part, inputs[:1])):
        for values in (proto.graph.input, proto.graph.output):
            kept = [value for value in values if value.name not in own]
            del values[:]
            values.extend(kept)
        some = [row | {"default": "none"} for row in some] if required else some
        described(proto, some, outputs, {"d_in": 1}, **{"largest": LARGEST, "-largest": -LARGEST})
    assert inputs[0]["in"] == "sae_slots"


def test_the_metadata_have_the_keys_of_the_page(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    said = [name.strip(" `") for row in rows("Metadata", "key") for name in row["key"].split(",")]
    assert sorted(said) == sorted(field.name for field in dataclasses.fields(Spliced))
    made = splice(host_graph("bert"), [Splice(bundle=bundle_of("mutual"), hook=HOOKS["bert"])], tmp_path / "model")
    metadata = {entry.key: entry.value for entry in loaded(made.path).metadata_props}
    assert sorted(json.loads(metadata["sae_runtime.splice.sae"])) == sorted(said)
    part = {entry.key for entry in loaded(made.path.with_name("features.onnx")).metadata_props}
    assert part == {"sae_runtime.splice.sae", "sae_runtime.cut_of"}
