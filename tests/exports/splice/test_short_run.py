"""The run of a spliced graph on tokens: what a host without a table of ids tells of its vocabulary."""

from pathlib import Path

import onnx
import onnx.parser
import pytest

from sae_runtime.exports.splice.short_run import CannotRun, vocabulary

WITHOUT_TABLE = """<ir_version: 8, opset_import: ["" : 18]>
g (int64[b, t] input_ids) => (float[b, t] y) { y = Cast<to = 1>(input_ids) }"""


def test_the_vocabulary_is_that_of_the_config_beside_the_host(tmp_path: Path) -> None:
    graph, host = tmp_path / "spliced.onnx", tmp_path / "host"
    onnx.save(onnx.parser.parse_model(WITHOUT_TABLE), str(graph))
    host.mkdir()
    (host / "config.json").write_text('{"vocab_size": 77}')
    assert vocabulary(graph, host) == 77


@pytest.mark.parametrize("text", [None, "[1]", "{}", '{"vocab_size": null}', "not json"])
def test_a_config_that_tells_no_vocabulary_stops_no_splice(tmp_path: Path, text: str | None) -> None:
    graph = tmp_path / "spliced.onnx"
    onnx.save(onnx.parser.parse_model(WITHOUT_TABLE), str(graph))
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CannotRun, match="its vocabulary is not known"):
        vocabulary(graph, tmp_path)
