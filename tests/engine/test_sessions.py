import importlib.util
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import D_IN, make_x
from numpy.typing import NDArray

from sae_runtime import BundleError, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.engine.sessions import CPU, Sessions, int8_levels, open_session, run_session
from sae_runtime.exports.certified.integers import probe_graph

BundleOf = Callable[..., Path]


def test_without_onnxruntime_one_sentence_has_both_commands(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = bundle_of("mutual"), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else real(name, *rest)
    )
    with pytest.raises(ImportError) as caught:
        load(path)
    assert str(caught.value) == (
        "onnxruntime not installed; run: pip install 'sae-runtime[cpu]' (or 'sae-runtime[gpu]' for CUDA)"
    )


@pytest.mark.parametrize("providers", [["NoSuchExecutionProvider"], [*CPU, "NoSuchExecutionProvider"], []])
def test_unknown_providers_are_refused(bundle_of: BundleOf, providers: list[str]) -> None:
    with pytest.raises(ValueError, match="must be some of .*CPUExecutionProvider, got .*run: sae-runtime doctor"):
        load(bundle_of("mutual"), providers=providers)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_are_at_least_one_and_not_too_many(bundle_of: BundleOf, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be 1 to 1,024, got {threads}"):
        load(bundle_of("mutual"), threads=threads)


def test_open_session_gives_threads_to_onnxruntime(bundle_of: BundleOf) -> None:
    session = open_session(bundle_of("mutual") / "encode.onnx", threads=1)
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == list(CPU)


def test_a_provider_that_does_not_start_is_not_replaced_silently(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    real = onnxruntime.InferenceSession

    def on_cpu(path: str, options: Any, providers: list[str], **_: Any) -> Any:
        return real(path, options, providers=list(CPU))

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    with pytest.raises(
        ValueError, match="CUDAExecutionProvider could not start, only .*CPU.*; run: sae-runtime doctor"
    ):
        load(bundle_of("mutual"), providers=["CUDAExecutionProvider"])


def test_open_session_reports_a_refused_graph_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"^onnxruntime refuses .*x.onnx \(.*\); export the model again$"):
        open_session(tmp_path / "x.onnx")
    (tmp_path / bundle.MANIFEST).touch()
    with pytest.raises(BundleError, match=r"^onnxruntime refuses .*x.onnx \(.*\); run: sae-runtime export") as caught:
        open_session(tmp_path / "x.onnx")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


def test_open_session_prints_nothing(bundle_of: BundleOf, capfd: pytest.CaptureFixture[str]) -> None:
    load(bundle_of("feature"), threads=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["token", "feature"])
def test_serving_loads_neither_torch_nor_onnx(bundle_of: BundleOf, kind: str) -> None:
    code = f"""
import sys
import numpy as np
import sae_runtime
def heavy():
    return sorted({{"torch", "onnx", "onnx_ir", "transformers", "scipy", "pyarrow"}} & set(sys.modules))
assert not heavy() and "onnxruntime" not in sys.modules, "on import"
sae = sae_runtime.load({str(bundle_of(kind))!r}, threads=1)
x = np.ones((3, {D_IN}), np.float32)
features = sae.encode(x)
sae.encode_batch(x)
sae.decode(features)
sae.steer(x, [sae_runtime.Edit.set(1, 2.0)])
print(heavy(), "onnxruntime" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


def test_the_probe_is_the_graph_that_exports_builds() -> None:
    file = resources.files("sae_runtime.engine").joinpath("probe.onnx").read_bytes()
    assert file == ir.to_proto(probe_graph()).SerializeToString(deterministic=True)


@pytest.mark.parametrize(("saturates", "levels"), [(False, 127), (True, 63)])
def test_int8_levels_follow_from_the_product_of_the_probe(
    monkeypatch: pytest.MonkeyPatch, saturates: bool, levels: int
) -> None:
    class Probe:
        """The probe's product with sums in 32 bits, or in 16 bits as on processors without VNNI."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, names: None, feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
            pairs = ((feed["x"].astype(np.int64) + 128) * 127).reshape(-1, 4, 2).sum(axis=2)
            pairs = pairs.clip(-(2**15), 2**15 - 1) if saturates else pairs
            return [np.tile((pairs.sum(axis=1) - 8 * 128 * 127)[:, None], (1, 16)).astype(np.float32)]

    monkeypatch.setattr("onnxruntime.InferenceSession", Probe)
    assert int8_levels.__wrapped__() == levels


def test_int8_levels_run_the_probe_once() -> None:
    assert int8_levels() in (63, 127)
    before = int8_levels.cache_info().hits
    assert int8_levels() in (63, 127) and int8_levels.cache_info().hits == before + 1


def test_graphs_are_opened_when_they_are_first_run(bundle_of: BundleOf) -> None:
    made = bundle.read(bundle_of("mutual"))
    sessions = Sessions(made, providers=CPU, threads=1, verify=True)
    assert sessions.on_cpu and not sessions.opened
    values = sessions.run("encode.onnx", {"x": make_x(3)})[1]
    assert values.shape == (3, made.manifest.slots) and sessions.opened == {("encode.onnx", False)}
    assert sessions.open("encode.onnx") is sessions.open("encode.onnx")
    alone = sessions.open("encode.onnx", shared=True)
    assert alone is not sessions.open("encode.onnx") and alone is sessions.open("encode.onnx", shared=True)
    assert alone.get_session_options().intra_op_num_threads == 1
    with pytest.raises(BundleError, match=r"has no other.onnx: not exported yet; run: sae-runtime export"):
        sessions.run("other.onnx", {})


def test_a_run_that_lacks_memory_is_a_memory_error(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        """A session that raises its input."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return list(CPU)

        def run(self, names: None, feed: dict[str, NDArray[Any]]) -> None:
            raise RuntimeError(feed["x"].item())

    monkeypatch.setattr("onnxruntime.InferenceSession", Failing)
    sessions = Sessions(bundle.read(bundle_of("mutual")), providers=CPU, threads=1, verify=True)
    with pytest.raises(MemoryError, match=r"^encode.onnx of .*: give fewer tokens at once$"):
        sessions.run("encode.onnx", {"x": np.array("Failed to allocate memory for requested buffer")})
    with pytest.raises(ValueError, match=r"^onnxruntime could not run encode.onnx of .*\(another\); export it again"):
        sessions.run("encode.onnx", {"x": np.array("another")})


def looks_up(folder: Path) -> Path:
    """A graph that fails while it runs where an index is out of range."""
    table = onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    index, row = (onnx.helper.make_tensor_value_info(*one, ["n"]) for one in (("index", 7), ("row", 1)))
    nodes = [onnx.helper.make_node("Gather", ["table", "index"], ["row"])]
    graph = onnx.helper.make_graph(nodes, "looks_up", [index], [row], [table])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "looks_up.onnx")
    return folder / "looks_up.onnx"


FEEDS = {
    "a value": {"index": np.array([5])},
    "a type": {"index": np.array([1.0])},
    "a rank": {"index": np.array([[1]])},
    "a name": {"other": np.array([1])},
    "nothing": {},
}


@pytest.mark.parametrize("fault", FEEDS)
def test_errors_of_a_run_are_one_sentence(fault: str, tmp_path: Path) -> None:
    session = open_session(looks_up(tmp_path))
    assert run_session(session, {"index": np.array([1])}, "a graph")[0].tolist() == [2.0]
    with pytest.raises(ValueError, match=r"^onnxruntime could not run a graph \(.*\); export it again, or") as caught:
        run_session(session, FEEDS[fault], "a graph")
    assert "\n" not in str(caught.value)


def test_a_provider_that_fails_is_named_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    real, path = onnxruntime.InferenceSession._create_inference_session, looks_up(tmp_path)

    def fails(self: Any, providers: Any, *rest: Any) -> None:
        if providers != list(CPU):
            raise RuntimeError("no such\ndevice")
        real(self, providers, *rest)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *CPU])
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fails)
    with pytest.raises(ValueError, match=r"^CUDA\w+ could not start \(no such device\); run: sae-runtime doctor$"):
        open_session(path, providers=["CUDAExecutionProvider", *CPU])
    path.write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"^onnxruntime refuses .* \(no such device\)"):
        open_session(path, providers=["CUDAExecutionProvider"])
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_fails_while_it_runs_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from onnxruntime.capi import _pybind_state

    class Fails:
        """The inner session, whose device fails."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def run(self, *_: Any) -> None:
            raise _pybind_state.EPFail("the device is gone")

    session = open_session(looks_up(tmp_path))
    real = session._sess
    monkeypatch.setattr(session, "_sess", Fails())
    with pytest.raises(ValueError, match=r"could not run a graph \(the device is gone\)"):
        run_session(session, {"index": np.array([1])}, "a graph")
    assert capfd.readouterr() == ("", "")


def test_sessions_have_one_pool_until_they_are_closed(bundle_of: BundleOf) -> None:
    sessions = Sessions(bundle.read(bundle_of("mutual")), providers=CPU, threads=3, verify=True)
    pool = sessions.pool
    assert sessions.pool is pool and pool.submit(sum, (1, 2)).result() == 3
    sessions.open("encode.onnx")
    sessions.close()
    assert not sessions.opened and sessions.pool is not pool
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(sum, (1, 2))
    assert sessions.run("encode.onnx", {"x": make_x(3)})[1].shape[0] == 3
    sessions.close()
