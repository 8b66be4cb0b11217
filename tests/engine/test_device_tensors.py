from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import D_IN, make_manifest, make_weights, make_x, served
from numpy.typing import NDArray

from sae_runtime import Features, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.engine.device_tensors import encode_tensor
from sae_runtime.engine.sessions import CPU, Sessions
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

pytestmark = pytest.mark.skipif(
    not hasattr(onnxruntime.OrtValue, "from_dlpack"), reason="onnxruntime before 1.27 has no DLPack"
)
BundleOf = Callable[..., Path]
GRAPHS = ("encode.onnx", "encode_gpu.onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a shared bundle with encode_gpu.onnx, which tests must not alter."""
    paths: dict[str, Path] = {}

    def give(kind: str) -> Path:
        if kind not in paths:
            paths[kind] = tmp_path_factory.mktemp("gpu") / kind
            bundle.write(paths[kind], make_weights(1500, kind), make_manifest(1500, kind))
            export(paths[kind], graphs=("gpu",))
        return paths[kind]

    return give


@pytest.fixture
def sessions(made: Callable[[str], Path]) -> Sessions:
    return Sessions(bundle.read(made("token")), providers=CPU, threads=1, verify=True)


def as_torch(x: NDArray[np.float32]) -> Any:
    return torch.from_numpy(x)


def as_numpy(x: NDArray[np.float32]) -> Any:
    return x


def address(tensor: Any) -> int:
    return int(tensor.data_ptr() if isinstance(tensor, torch.Tensor) else tensor.ctypes.data)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("wrap", [as_torch, as_numpy])
def test_encode_tensor_gives_the_features_in_tensors_of_the_callers_library(
    sessions: Sessions, graph: str, wrap: Callable[..., Any]
) -> None:
    x = make_x(50)
    given = wrap(x)
    indices, values = encode_tensor(sessions, make_manifest(1500, "token"), graph, given)
    assert type(indices) is type(values) is type(given)
    assert str(indices.dtype).endswith("int64") and str(values.dtype).endswith("float32")
    assert witness.disagreement(served("token", 1500, x), np.asarray(indices), np.asarray(values)) is None


@pytest.mark.parametrize("wrap", [as_torch, as_numpy])
def test_encode_tensor_copies_no_tensor(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, wrap: Callable[..., Any]
) -> None:
    bound: list[int] = []
    returned: list[int] = []
    real = Sessions.run_bound

    class Watched:
        """A binding that records the addresses of its inputs and outputs."""

        def __init__(self, binding: Any) -> None:
            self.binding = binding

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            bound.append(value.data_ptr())
            self.binding.bind_ortvalue_input(name, value)

        def get_outputs(self) -> Any:
            values = self.binding.get_outputs()
            returned.extend(value.data_ptr() for value in values)
            return values

        def __getattr__(self, name: str) -> Any:
            return getattr(self.binding, name)

    io_binding = onnxruntime.InferenceSession.io_binding
    monkeypatch.setattr(onnxruntime.InferenceSession, "io_binding", lambda session: Watched(io_binding(session)))
    monkeypatch.setattr(
        Sessions, "run_bound", lambda self, name, session, watched: real(self, name, session, watched.binding)
    )
    x = wrap(make_x(9))
    indices, values = encode_tensor(sessions, make_manifest(1500, "token"), "encode.onnx", x)
    assert bound == [address(x)] and returned == [address(indices), address(values)]


def test_the_tensors_of_encode_tensor_outlive_the_session(made: Callable[[str], Path]) -> None:
    x = make_x(300)
    indices, values = load(made("token"), threads=1).encode_tensor(torch.from_numpy(x))
    for _ in range(3):  # new tensors that would overwrite freed memory
        load(made("token"), threads=1).encode_tensor(torch.from_numpy(x * 0))
    assert witness.disagreement(served("token", 1500, x), indices.numpy(), values.numpy()) is None


@pytest.mark.parametrize("wrap", [as_torch, as_numpy])
def test_rows_that_are_not_certain_are_encoded_in_full(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, wrap: Callable[..., Any]
) -> None:
    x = make_x(300)
    read = bundle.read(made("mutual"))
    sessions = Sessions(read, providers=CPU, threads=1, verify=True)
    redone: list[int] = []
    real = Sessions.run_bound

    def count(self: Sessions, name: str, session: Any, binding: Any) -> None:
        real(self, name, session, binding)
        if name == "encode.onnx":
            redone.append(binding.get_outputs()[0].shape()[0])

    monkeypatch.setattr(Sessions, "run_bound", count)
    found = encode_tensor(sessions, read.manifest, "encode_gpu.onnx", wrap(x))
    assert len(redone) == 1 and 10 < redone[0] < 300
    whole = sessions.run("encode.onnx", {"x": x})
    np.testing.assert_allclose(np.asarray(found[1]), whole[1], rtol=1e-5, atol=1e-6)
    used = whole[1] > 0
    assert (np.asarray(found[0]) == whole[0])[used].mean() > 0.999  # two values may be nearly equal


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch.zeros(3, D_IN, dtype=torch.float64),
            r"expected a tensor float32 \[tokens, 24\] .*got float64 \[3, 24\]",
        ),
        (torch.zeros(D_IN), r"got float32 \[24\]; cast it"),
        (torch.zeros(3, D_IN - 1), r"got float32 \[3, 23\]"),
        (torch.zeros(0, D_IN), r"with tokens, got float32 \[0, 24\]"),
        (torch.zeros(D_IN, 3).T, "rows are not contiguous in memory; make it contiguous"),
        (np.zeros((3, 2 * D_IN), np.float32)[:, ::2], "make it contiguous"),
        (torch.zeros(3, D_IN, requires_grad=True), r"cannot be lent to onnxruntime: .*detach\(\)"),
        ([1.0], "expected a tensor of torch, CuPy or numpy, got list; use SAE.encode for others"),
    ],
)
def test_encode_tensor_refuses_other_arguments(sessions: Sessions, tensor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_tensor(sessions, make_manifest(1500, "token"), "encode.onnx", tensor)


def test_a_tensor_on_another_device_is_refused(sessions: Sessions) -> None:
    class Elsewhere:
        def __init__(self, kind: int) -> None:
            self.kind = kind

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.kind, 1

    Elsewhere.__module__ = "torch"
    for kind, name in ((2, "cuda:1"), (10, "a device of DLPack type 10:1")):
        with pytest.raises(ValueError, match=f"the tensor is on {name}, the SAE on cpu:0; move it, or load with"):
            encode_tensor(sessions, make_manifest(1500, "token"), "encode.onnx", Elsewhere(kind))


def test_encode_tensor_names_the_onnxruntime_that_it_needs(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime.OrtValue, "from_dlpack")
    with pytest.raises(ImportError, match=r"tensors need onnxruntime 1.27 or later, this is .*; upgrade it"):
        encode_tensor(sessions, make_manifest(1500, "token"), "encode.onnx", torch.zeros(3, D_IN))


def test_on_cuda_tf32_is_off_and_encode_gpu_encodes(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This checks the options that onnxruntime gets, on a machine without a GPU."""
    asked: list[list[tuple[str, dict[str, str]]]] = []

    class Session:
        def __init__(self, _path: str, _options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any) -> None:
            asked.append(providers)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", *CPU]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    read = bundle.read(made("token"))
    sessions = Sessions(
        read, providers=[("CUDAExecutionProvider", {"device_id": "1"}), *CPU], threads=None, verify=True
    )
    assert sessions.device == ("cuda", 1) and not sessions.on_cpu
    sessions.open("encode_gpu.onnx")
    cpu: tuple[str, dict[str, str]] = (CPU[0], {})
    options = {"use_tf32": "0", "device_id": "1"}
    assert asked == [[("CUDAExecutionProvider", options), cpu]]
    for graph, expected in ((None, "encode_gpu.onnx"), ("encode.onnx", "encode.onnx")):
        assert load(made("token"), graph=graph, providers=["CUDAExecutionProvider"]).graph == expected
    Sessions(read, providers=[("CUDAExecutionProvider", {"use_tf32": "1"})], threads=None, verify=True).open(
        "encode.onnx"
    )
    assert asked[-3:] == [
        [("CUDAExecutionProvider", {"use_tf32": "0"})],
        [("CUDAExecutionProvider", {"use_tf32": "0"})],
        [("CUDAExecutionProvider", {"use_tf32": "1"})],
    ]


def test_encode_gpu_on_a_cpu_gives_the_features_of_encode_onnx(made: Callable[[str], Path]) -> None:
    for kind in ("token", "mutual"):
        x, sae = make_x(100), load(made(kind), graph="encode_gpu.onnx", threads=1)
        plain = load(made(kind), graph="encode.onnx", threads=1)
        same(sae.encode(x), plain.encode(x))
        assert sae.redone[1] > 0
        if kind == "token":
            same(sae.encode(x, k=3), plain.encode(x, k=3))
        else:
            same(sae.encode(x, threshold=1.5), plain.encode(x, threshold=1.5))
            same(sae.encode_batch(x), plain.encode_batch(x))
        found = sae.encode_tensor(torch.from_numpy(x))[1].numpy()
        np.testing.assert_allclose(found, plain.encode_tensor(torch.from_numpy(x))[1].numpy(), rtol=1e-5, atol=1e-6)


def same(found: Features, expected: Features) -> None:
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)
