"""Every place at which a graph can name a file is looked at, with protobuf messages that onnx itself makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_hosts import host

from sae_runtime.bundle.external_data import check_external, located


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a host, and a secret beside the folder."""
    host(tmp_path / "model" / "host.onnx", external="host.data")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "model"


def elsewhere(name: str, location: str) -> onnx.TensorProto:
    tensor = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_every_place_of_a_tensor_is_looked_at(model: Path) -> None:
    """Initializers, sparse ones, attributes, graphs inside nodes, functions and training; the last entry counts."""
    clean = onnx.load(model / "host.onnx", load_external_data=False)
    stolen, sparse = elsewhere("stolen", "../secret"), onnx.SparseTensorProto()
    sparse.values.CopyFrom(stolen)
    body = onnx.helper.make_graph([], "body", [], [], [stolen])
    constant = onnx.helper.make_node("Constant", [], ["c"], value=stolen)
    nested = onnx.helper.make_graph([constant], "nested", [], [])
    within: dict[str, Callable[[Any], None]] = {
        "initializer": lambda model: model.graph.initializer.append(stolen),
        "sparse": lambda model: model.graph.sparse_initializer.append(sparse),
        "constant": lambda model: model.graph.node.append(constant),
        "tensors": lambda model: model.graph.node.append(onnx.helper.make_node("Own", [], ["c"], t=[stolen])),
        "sparse constant": lambda model: model.graph.node.append(
            onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse)
        ),
        "body": lambda model: model.graph.node.append(onnx.helper.make_node("If", ["x"], ["c"], then_branch=body)),
        "bodies": lambda model: model.graph.node.append(onnx.helper.make_node("Own", ["x"], ["c"], g=[body, nested])),
        "nested": lambda model: model.graph.node.append(onnx.helper.make_node("If", ["x"], ["c"], then_branch=nested)),
        "function": lambda model: model.functions.add(name="f", domain="d").node.append(constant),
        "training": lambda model: model.training_info.add().algorithm.CopyFrom(nested),
    }
    for name, put in within.items():
        made = onnx.ModelProto()
        made.CopyFrom(clean)
        put(made)
        (model / "made.onnx").write_bytes(made.SerializeToString())
        with pytest.raises(ValueError, match=r"reads '\.\./secret', which is not in its folder"):
            check_external(model / "made.onnx")
            pytest.fail(name)
    twice = elsewhere("twice", "host.data")
    twice.external_data.add(key="location", value="../secret")
    clean.graph.initializer.append(twice)
    (model / "made.onnx").write_bytes(clean.SerializeToString())
    with pytest.raises(ValueError, match="does not say once where its tensor 'twice' is"):
        check_external(model / "made.onnx")


def test_bytes_that_two_readers_read_otherwise_are_refused(model: Path) -> None:
    """onnxruntime drops the high bits of a field's number: 13 in this way would be a location that nobody looked at."""
    whole = (model / "host.onnx").read_bytes()
    for damage in (whole[:-3], whole[: len(whole) // 2], b"", b"\x3b", bytes([0xBA, 0x80, 0x80, 0x80, 0x70]) + b"\0"):
        (model / "made.onnx").write_bytes(damage)
        with pytest.raises(ValueError, match="is not a readable ONNX graph"):
            check_external(model / "made.onnx")


def test_a_sound_graph_passes_from_any_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_external(model / "host.onnx")
    monkeypatch.chdir(model)
    check_external(Path("host.onnx"))
    assert located(Path("host.onnx"), "./host.data") == Path("host.data")
    (model / "inner").mkdir()
    (model / "inner" / "link").symlink_to("../host.data")  # a link inside the folder
    located(model / "host.onnx", "inner/link")


def test_the_blobs_of_a_hub_cache_are_the_ones_beside_the_snapshot(model: Path, tmp_path: Path) -> None:
    for repository, is_cache in (("models--o--n", True), ("downloads", False)):
        snapshot, blobs = tmp_path / repository / "snapshots" / "0123", tmp_path / repository / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        (blobs / "abc").write_text("x")
        (snapshot / "host.data").symlink_to("../../blobs/abc")
        if is_cache:
            assert located(snapshot / "host.onnx", "host.data") == snapshot / "host.data"
            continue
        with pytest.raises(ValueError, match="reads 'host.data', which is not in its folder"):
            located(snapshot / "host.onnx", "host.data")
