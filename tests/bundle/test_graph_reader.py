from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sae_runtime.bundle.graph_reader import read_metadata


def saved(path: Path, metadata: dict[str, str]) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    weight = numpy_helper.from_array(np.arange(3.0), "weight")
    graph = helper.make_graph([], "a graph", [value], [value], [weight])
    model = helper.make_model(graph, producer_name="here", ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("metadata", [{}, {"a": ""}, {"license": "MIT", "": "empty key", "long": "é" * 40_000}])
def test_metadata_are_those_that_onnx_wrote(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert read_metadata(saved(tmp_path / "a.onnx", metadata)) == metadata


def test_a_file_that_is_cut_anywhere_or_is_no_graph_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.onnx", {"license": "MIT", "more": "of it"}).read_bytes()
    path = tmp_path / "cut.onnx"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            found = read_metadata(path)
        except ValueError as error:
            assert "is not a readable ONNX graph" in str(error) and "export it again" in str(error)
        else:
            onnx.load_model_from_string(whole[:end])  # cut between two fields: a whole message too
            assert found.items() <= {"license": "MIT", "more": "of it"}.items()
    for data in (b"", b"nonsense", b"\xff" * 40, b"\x80" * 12, b"\x0b", b"PK\x03\x04" * 9, b"\x72\x04\x0a\x02\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cut.onnx is not a readable ONNX graph"):
            read_metadata(path)
    with pytest.raises(FileNotFoundError, match="none.onnx does not exist"):
        read_metadata(tmp_path / "none.onnx")
