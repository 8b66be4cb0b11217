"""Graphs of strangers are refused before onnxruntime sees them; all that our exporter writes passes."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import make_x
from corruption import deadline
from hostile_graphs import KINDS, RAW, hostile, raw
from resealed import changed

from sae_runtime import load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.contract import check_graph
from sae_runtime.bundle.folder import DERIVED, WEIGHTS, BundleError
from sae_runtime.bundle.tensors import read_header
from sae_runtime.engine import sessions
from sae_runtime.engine.sessions import open_session

CopyOf = Callable[..., Path]
BundleOf = Callable[..., Path]


@pytest.fixture
def no_session(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_of("mutual")  # whose export opens sessions

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("onnxruntime was given a stranger's graph")

    monkeypatch.setattr(sessions, "open_session", opened)


def check(path: Path, graph: bytes, name: str = "encode.onnx") -> None:
    """What `Bundle.graph` checks."""
    bundle = bundles.read(path, verify=False)
    derived = read_header(path / DERIVED) if (path / DERIVED).exists() else {}
    check_graph(graph, name, bundle.manifest, {WEIGHTS: bundle.specs, DERIVED: derived})


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_a_stranger_is_refused_in_a_sentence(copy_of: CopyOf, no_session: None, kind: str) -> None:
    path = changed(copy_of("mutual"), "encode.onnx", lambda graph: hostile(graph, kind))
    with deadline(), pytest.raises(BundleError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith("encode.onnx is not a graph that sae-runtime writes for this SAE (")
    assert message.endswith(f"; load with rebuild=True, or run: sae-runtime export {path}")
    assert len(message.splitlines()) == 1 and len(message) < 400


@pytest.mark.parametrize("kind", RAW)
def test_bytes_that_are_no_graph_are_refused_in_a_sentence(copy_of: CopyOf, no_session: None, kind: str) -> None:
    path = changed(copy_of("mutual"), "encode.onnx", lambda graph: raw(kind, graph))
    with deadline(), pytest.raises(BundleError, match="^encode.onnx is not a graph that sae-runtime writes"):
        load(path)


def test_a_graph_stands_for_its_own_name_and_architecture_only(bundle_of: BundleOf) -> None:
    threshold, topk = bundle_of("mutual"), bundle_of("token")
    for path, other, name, as_name in [
        (threshold, topk, "encode.onnx", "encode.onnx"),
        (topk, threshold, "encode.onnx", "encode.onnx"),
        (threshold, threshold, "decode.onnx", "encode.onnx"),
        (threshold, threshold, "encode.onnx", "other.onnx"),
        (threshold, bundle_of("mutual", 160), "encode.onnx", "encode.onnx"),
        (threshold, bundle_of("mutual", slots=25), "encode.onnx", "encode.onnx"),
        (threshold, bundle_of("feature"), "encode_joint.onnx", "encode_joint.onnx"),
    ]:
        check(other, (other / name).read_bytes(), name)
        with pytest.raises(ValueError, match=f"^{as_name} is not a graph that sae-runtime writes for this SAE"):
            check(path, (other / name).read_bytes(), as_name)


def test_a_graph_that_passed_is_refused_where_its_weights_lie_elsewhere(bundle_of: BundleOf) -> None:
    path = bundle_of("mutual")
    bundle, graph = bundles.read(path, verify=False), (path / "encode.onnx").read_bytes()
    check(path, graph)
    for change in ({"offset": 8}, {"size": 4}, {"dtype": "F16"}, {"shape": (150, 24)}):
        specs = {**bundle.specs, "W_enc": dataclasses.replace(bundle.specs["W_enc"], **change)}
        with pytest.raises(ValueError, match="W_enc is not the tensor of this name"):
            check_graph(graph, "encode.onnx", bundle.manifest, {WEIGHTS: specs})


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_names_of_values_and_of_producers_do_not_matter(bundle_of: BundleOf, kind: str) -> None:
    path = bundle_of(kind)
    for file in sorted(path.glob("*.onnx")):
        model = onnx.load(file, load_external_data=False)
        model.producer_name, model.producer_version, model.graph.doc_string = "another", "9", "a text"
        kept = {value.name for value in (*model.graph.input, *model.graph.output)}
        made = {name for node in model.graph.node for name in node.output if name} - kept
        for node in [*model.graph.node, *(n for outer in model.graph.node for a in outer.attribute for n in a.g.node)]:
            node.name = ""
            for names in (node.input, node.output):
                names[:] = [f"renamed {name}" if name in made else name for name in names]
        for attribute in (a for node in model.graph.node for a in node.attribute):
            for output in attribute.g.output:
                output.name = f"renamed {output.name}" if output.name in made else output.name
        check(path, model.SerializeToString(), file.name)


def test_changed_bytes_are_refused_or_change_nothing(bundle_of: BundleOf, tmp_path: Path) -> None:
    path, rng, passed = bundle_of("mutual"), random.Random(0), 0
    whole = (path / "encode.onnx").read_bytes()
    expected = open_session(path / "encode.onnx").run(None, {"x": make_x(5)})
    (tmp_path / WEIGHTS).symlink_to(path / WEIGHTS)
    for _ in range(120):
        graph = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            graph[rng.randrange(len(graph))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            with deadline():
                check(path, bytes(graph))
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
            continue
        passed += 1
        (tmp_path / "encode.onnx").write_bytes(graph)
        (tmp_path / WEIGHTS).unlink()
        (tmp_path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes())
        for array, same in zip(
            open_session(tmp_path / "encode.onnx").run(None, {"x": make_x(5)}), expected, strict=True
        ):
            np.testing.assert_array_equal(array, same)
    assert 0 < passed < 100
