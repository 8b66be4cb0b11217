"""The plane inside the real kserve server, by REST and gRPC: the bits of the library alone, and errors in its codes.

`make kserve` installs it in an environment of its own; without it these tests skip.
"""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x
from word_model import deploy_words

from sae_runtime import Edit, load, load_model
from sae_runtime.core.edits import as_inputs

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "kserve" / "bin" / "python"
SCRIPT = Path(__file__).with_name("kserve_local.py")
TEXTS = ["w4 w5 w6", "w7", "w5 w5 w11 w4"]

pytestmark = [pytest.mark.servers, pytest.mark.skipif(not PYTHON.is_file(), reason="make kserve installs it")]


class Running:
    """kserve's server with a bundle `mine` and a deployed model `words`, and more options."""

    def __init__(self, bundle: Path, model: Path, said: Path, *more: str) -> None:
        self.bundle, self.model, self.said = bundle, model, said
        self.port, self.grpc_port = _free_port(), _free_port()
        words = [PYTHON, SCRIPT, f"mine={bundle}", f"words={model}", *more, "--http_port", self.port]
        with said.open("wb") as out:
            self.process = subprocess.Popen(
                [*map(str, words), "--grpc_port", str(self.grpc_port)],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + 240
        while not self._ready():
            assert self.process.poll() is None and time.monotonic() < end, said.read_text()[-3000:]
            time.sleep(0.1)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.said.read_text()[-3000:]

    def _ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def get(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, model: str, body: Any) -> tuple[int, Any]:
        code, answer = self.get(
            f"/v2/models/{model}/infer", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return code, json.loads(answer)

    def grpc(self, model: str, **arrays: Any) -> Any:
        given = io.BytesIO()
        np.savez(given, **arrays)
        asked = [PYTHON, SCRIPT, "grpc", self.grpc_port, model]
        done = subprocess.run(list(map(str, asked)), input=given.getvalue(), capture_output=True)
        if done.returncode:
            return done.stderr.decode().strip().splitlines()[-1]
        return np.load(io.BytesIO(done.stdout))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def running(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("kserve")
    bundle = bundle_of("mutual")
    server = Running(bundle, deploy_words(folder / "words", bundle), folder / "said")
    yield server
    server.end()


def _rest(running: Running, model: str, inputs: dict[str, Any]) -> Any:
    import tritonclient.http as client

    asked = []
    for name, array in inputs.items():
        kind = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}[str(array.dtype)]
        asked.append(client.InferInput(name, array.shape, kind))
        asked[-1].set_data_from_numpy(array)
    with client.InferenceServerClient(f"127.0.0.1:{running.port}", network_timeout=30.0) as own:
        return own.infer(model, asked)


def test_answers_keep_the_bits_of_the_library(running: Running) -> None:
    sae, x = load(running.bundle), make_x(37, seed=3).astype(np.float32)
    edits = [Edit.set(3, 8.0), Edit.ablate(7)]
    sent = as_inputs([edits], sae.d_sae)
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("mine.encode", {"x": x}, dict(zip(("indices", "values"), sae.encode_slots(x), strict=True))),
        ("mine.steer", {"x": x[None], **sent}, {"y": sae.steer(x[None], [edits])}),
        ("mine.encode", {"x": x[:0]}, dict(zip(("indices", "values"), sae.encode_slots(x[:0]), strict=True))),
    ]
    for model, inputs, expected in calls:
        by_rest, by_grpc = _rest(running, model, inputs), running.grpc(model, **inputs)
        for name, array in expected.items():
            if array.size:
                np.testing.assert_array_equal(by_rest.as_numpy(name), array)
            np.testing.assert_array_equal(by_grpc[name], array)


def test_json_gives_the_same_numbers(running: Running) -> None:
    x = make_x(3, seed=4).astype(np.float32)
    body = {"inputs": [{"name": "x", "shape": [3, 24], "datatype": "FP32", "data": x.ravel().tolist()}]}
    code, answer = running.post("mine.encode", body)
    assert code == 200, answer
    got = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
    indices, values = load(running.bundle).encode_slots(x)
    np.testing.assert_array_equal(got["indices"], indices)
    np.testing.assert_array_equal(got["values"].astype(np.float32), values)
    code, answer = running.post("mine.encode", body | {"outputs": [{"name": "values"}]})
    assert code == 200 and [one["name"] for one in answer["outputs"]] == ["values"]


def test_texts_both_ways(running: Running) -> None:
    seen = load_model(running.model).features(TEXTS)
    texts = np.array([text.encode() for text in TEXTS], object)
    by_rest = _rest(running, "words.features", {"text": texts})
    by_grpc = running.grpc("words.features", text=np.array(TEXTS))
    tokens = [token for one in seen for token in one.tokens]
    assert [token.decode() for token in by_rest.as_numpy("tokens")] == tokens
    assert [token.decode() for token in by_grpc["tokens"]] == tokens
    splits = np.cumsum([0, *(len(one.tokens) for one in seen)])
    np.testing.assert_array_equal(by_rest.as_numpy("row_splits"), splits)
    for number, one in enumerate(seen):
        for place in range(len(one.tokens)):
            row = splits[number] + place
            indices, values = one.features.row(place)
            np.testing.assert_array_equal(by_rest.as_numpy("indices")[row, : len(indices)], indices)
            np.testing.assert_allclose(by_grpc["values"][row, : len(values)], values, rtol=1e-5)


def test_what_is_refused_is_one_sentence_of_the_callers_code(running: Running) -> None:
    def tensor(**changed: Any) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "shape": [1, 24], "datatype": "FP32", "data": [0.5] * 24} | changed]}

    wrong: list[tuple[str, Any, int]] = [
        ("mine.encode", tensor(name="y"), 400),
        ("mine.encode", tensor(shape=[1, 23]), 400),
        ("mine.encode", tensor(shape=[2, 12]), 400),
        ("mine.encode", tensor(datatype="FP7"), 400),
        ("mine.encode", tensor(datatype="BYTES", data=["a"] * 24), 400),
        ("mine.encode", tensor(data=["a"] * 24), 400),
        ("mine.encode", tensor(data=[1e39] * 24), 400),
        ("mine.encode", {"inputs": []}, 400),
        ("mine.encode", tensor() | {"outputs": [{"name": "no"}]}, 400),
        ("nobody.encode", tensor(), 404),
        ("words.features", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [7]}]}, 400),
    ]
    for model, body, expected in wrong:
        code, answer = running.post(model, body)
        assert code == expected and isinstance(answer["error"], str) and "\n" not in answer["error"], (body, answer)
    refused = running.grpc("mine.encode", x=np.full((1, 24), np.nan, np.float32))
    assert refused.startswith("INVALID_ARGUMENT: ") and "NaN" in refused
    assert running.grpc("mine.encode", x=np.zeros((1, 3), np.float32)).startswith("INVALID_ARGUMENT: ")
    assert running.get("/v2/health/live")[0] == 200


def test_metadata_names_the_tensors(running: Running) -> None:
    code, answer = running.get("/v2/models/mine.encode")
    told = json.loads(answer)
    assert code == 200 and {"name": "x", "datatype": "FP32", "shape": [-1, 24]} in told["inputs"]
    assert [one["name"] for one in told["outputs"]] == ["indices", "values"]


def test_callers_at_once_get_their_own_answers(running: Running) -> None:
    sae = load(running.bundle)
    rows = [make_x(1 + number % 5, seed=number).astype(np.float32) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: _rest(running, "mine.encode", {"x": x}), rows))
    for x, answer in zip(rows, answers, strict=True):
        for name, array in zip(("indices", "values"), sae.encode_slots(x), strict=True):
            np.testing.assert_array_equal(answer.as_numpy(name), array)


def test_bounds_and_limits_of_the_command_hold(running: Running, tmp_path: Path) -> None:
    bounds, limits = '{"largest_edit": 5, "refuse_feature": ["mine:4"]}', '{"seconds": 1e-9, "rows": 8}'
    own = Running(running.bundle, running.model, tmp_path / "said", "--policy", bounds, "--limits", limits)
    try:
        x = {"name": "x", "shape": [1, 1, 24], "datatype": "FP32", "data": [0.5] * 24}
        for edit, said in (
            ({"feature": 3, "set": 5.1}, "at most 5"),
            ({"feature": 4, "set": 1}, "feature 4 may not be edited"),
        ):
            edits = {"name": "edits", "shape": [1], "datatype": "BYTES", "data": [json.dumps({"edits": [edit]})]}
            code, answer = own.post("mine.steer", {"inputs": [x, edits]})
            assert code == 400 and said in answer["error"], answer
        code, answer = own.post("mine.encode", {"inputs": [x | {"shape": [9, 24], "data": [0.5] * 216}]})
        assert code == 400 and "9" in answer["error"], answer
        # No answer comes in so short a time, which is one of the ways in which a server is busy.
        code, answer = own.post("mine.encode", {"inputs": [x | {"shape": [1, 24]}]})
        assert code == 503 and "was not answered" in answer["error"], answer
        assert own.grpc("mine.encode", x=np.zeros((1, 24), np.float32)).startswith("UNAVAILABLE: ")
    finally:
        own.end()


@pytest.mark.parametrize("wrong", ['{"largest": 5}', '{"largest_edit": "5"}', '{"refuse_feature": ["mine:999"]}', "{"])
def test_bounds_that_do_not_fit_stop_the_start(running: Running, wrong: str) -> None:
    words = [PYTHON, "-m", "sae_runtime.serve.kserve_model", f"mine={running.bundle}", "--policy", wrong]
    done = subprocess.run([*map(str, words)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith("error: "), lines
    assert "Traceback" not in done.stderr.decode()
