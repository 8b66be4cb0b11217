"""The Open Inference Protocol by REST, against the library alone."""

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x
from running import asked, running

import sae_runtime
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.http.app import App
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.live import Live
from sae_runtime.serve.plane import Plane

KEY = b"key-of-the-tests-of-32-characters"


@pytest.fixture(scope="module")
def bundle(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("mutual")


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    loaded = open_all([f"mine={bundle}", f"mine@3={bundle}"], threads=1)
    plane = Plane(loaded, limits=Limits(body=1 << 20, rows=500), watcher=Live(loaded))
    with running(plane) as found:
        yield found


def lists(x: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}], **more}


def binary(x: Any, **more: Any) -> tuple[bytes, dict[str, str]]:
    raw = x.tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def error(answer: tuple[int, bytes, Any], status: int) -> str:
    assert answer[0] == status, answer
    told = json.loads(answer[1])["error"]
    assert isinstance(told, str) and "\n" not in told
    return told


def test_json_flat_nested_and_binary_give_what_the_library_gives(address: str, bundle: Path) -> None:
    x, path = make_x(7), "/v2/models/mine.encode/infer"
    indices, values = sae_runtime.load(bundle, threads=1).encode_slots(x)
    nested = lists(x)
    nested["inputs"][0]["data"] = x.tolist()
    for body in (lists(x, id="7"), nested | {"id": "7"}):
        status, text, _ = asked(address, "POST", path, body)
        answer = json.loads(text)
        assert (status, answer["model_name"], answer["model_version"], answer["id"]) == (200, "mine.encode", "3", "7")
        found = {one["name"]: one for one in answer["outputs"]}
        assert found["indices"]["shape"] == list(indices.shape)
        np.testing.assert_array_equal(np.array(found["values"]["data"], np.float32), values.ravel())
        np.testing.assert_array_equal(found["indices"]["data"], indices.ravel())
    outputs = [{"name": "values", "parameters": {"binary_data": True}}, {"name": "indices"}]
    packed, headers = binary(x, outputs=outputs)
    status, text, sent = asked(address, "POST", path, gzip.compress(packed), headers | {"Content-Encoding": "gzip"})
    length = int(sent["inference-header-content-length"])
    answer = json.loads(text[:length])
    assert (status, [one["name"] for one in answer["outputs"]]) == (200, ["values", "indices"])
    assert text[length:] == values.tobytes() and answer["outputs"][1]["data"] == indices.ravel().tolist()


def test_other_types_become_the_model_s(address: str) -> None:
    x = np.round(make_x(3) * 4)
    answers = set()
    for datatype, dtype in (("FP32", "<f4"), ("FP64", "<f8"), ("FP16", "<f2"), ("INT8", "i1"), ("INT64", "<i8")):
        raw = x.astype(dtype).tobytes()
        tensor = {"name": "x", "datatype": datatype, "shape": [3, 24], "parameters": {"binary_data_size": len(raw)}}
        text = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        status, said, _ = asked(address, "POST", "/v2/models/mine.encode/infer", text + raw, headers)
        assert status == 200, said
        answers.add(said)
    assert len(answers) == 1


def test_health_index_metadata_and_versions(address: str) -> None:
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/mine.encode/ready",
        "/v2/models/mine.steer/versions/1/ready",
    ):
        assert asked(address, "GET", path)[0] == 200
    assert json.loads(asked(address, "GET", "/v2")[1])["extensions"] == ["binary_tensor_data", "model_repository"]
    told = json.loads(asked(address, "GET", "/v2/models/mine.encode/versions/1")[1])
    assert (told["name"], told["versions"], told["inputs"][0]) == (
        "mine.encode",
        ["1", "3"],
        {"name": "x", "datatype": "FP32", "shape": [-1, 24]},
    )
    index = json.loads(asked(address, "POST", "/v2/repository/index", {"ready": True})[1])
    assert {"name": "mine.decode", "version": "3", "state": "READY", "reason": ""} in index
    assert b"sae_runtime_http_requests_total" in asked(address, "GET", "/metrics")[1]


def test_refusals_are_one_sentence_and_name_the_fault(address: str) -> None:
    path, x = "/v2/models/mine.encode/infer", make_x(2)
    assert "no model" in error(asked(address, "POST", "/v2/models/other.encode/infer", lists(x)), 404)
    error(asked(address, "GET", "/v2/models/mine.encode/versions/2"), 404)
    error(asked(address, "GET", "/v2/models/../../etc/passwd"), 404)
    error(asked(address, "GET", "/v2/nothing"), 404)
    error(asked(address, "GET", path), 404)
    assert "missing" in error(asked(address, "POST", path, {"inputs": []}), 400)
    assert "NaN" in error(asked(address, "POST", path, b'{"inputs": [{"name": "x", "data": [NaN]}]}'), 400)
    assert "NaN" in error(asked(address, "POST", path, *binary(x * np.float32(np.nan))), 400)
    assert "twice" in error(asked(address, "POST", path, b'{"id": "1", "id": "2"}'), 400)
    assert "500" in error(asked(address, "POST", path, *binary(make_x(501))), 413)
    bomb = gzip.compress(bytes(50 << 20))
    assert "inflated" in error(asked(address, "POST", path, bomb, {"Content-Encoding": "gzip"}), 413)
    error(asked(address, "POST", path, bytes(2 << 20)), 413)
    error(asked(address, "POST", path, bomb[:-9], {"Content-Encoding": "gzip"}), 413)
    error(asked(address, "POST", path, b"no gzip", {"Content-Encoding": "gzip"}), 400)
    error(asked(address, "POST", path, gzip.compress(b"{}")[:-3], {"Content-Encoding": "gzip"}), 400)
    error(asked(address, "POST", path, b"{}", {"Content-Encoding": "br"}), 400)
    for wrong in (
        {"datatype": "FP33"}, {"shape": [-1, 24]}, {"shape": [2, 1 << 62]}, {"shape": [0, 1 << 62]}, {"shape": [2, 23]},
        {"data": [True] * 48}, {"data": ["1"] * 48}, {"data": [1e300] * 48}, {"data": [10**400] * 48}, {"data": None},
        {"data": [[1.0] * 24, [1.0] * 23]}, {"data": [[[1.0]] * 24] * 2}, {"datatype": "INT8", "data": [300] * 48},
        {"datatype": "INT64", "data": [1.5] * 48}, {"datatype": "UINT8", "data": [-1] * 48}, {"datatype": "BF16"},
        {"datatype": "BYTES", "data": ["a"] * 48}, {"parameters": {"binary_data_size": 8}}, {"parameters": [1]},
        {"parameters": {"shared_memory_region": "a"}}, {"name": 3}, {"name": "y"},
    ):  # fmt: skip
        one = lists(x)
        one["inputs"][0] |= wrong
        error(asked(address, "POST", path, one), 400)


def test_a_request_without_one_of_the_keys_is_refused_and_health_is_open(bundle: Path) -> None:
    with running(Plane.open([f"mine={bundle}"]), keys=[b"another-key-of-16-bytes", KEY]) as address:
        for path in ("/v2", "/metrics", "/v1/models", "/page/models", "/v2/models/mine.encode/infer", "/other"):
            for sent in (
                {},
                {"Authorization": "Bearer key"},
                {"Authorization": f"Bearer {KEY.decode()}x"},
                {"Authorization": "Basic %"},
            ):
                assert asked(address, "GET", path, headers=sent)[0] == 401
        assert asked(address, "GET", "/v2", headers={"Authorization": f"Bearer {KEY.decode()}"})[0] == 200
        assert [asked(address, "GET", f"/v2/health/{name}")[0] for name in ("live", "ready")] == [200, 200]


def test_pages_of_other_sites_cannot_ask(bundle: Path) -> None:
    with running(Plane.open([f"mine={bundle}"]), hosts=("localhost",)) as address:
        assert asked(address, "GET", "/v2", headers={"Host": "evil.example:80"})[0] == 403
        assert asked(address, "GET", "/v2", headers={"Origin": "https://evil.example"})[0] == 403
        assert asked(address, "GET", "/v2", headers={"Origin": address})[0] == 200


def test_connection_that_closed_while_its_answer_was_made_is_no_fault(bundle: Path) -> None:
    async def send(message: Any) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    plane = Plane.open([f"mine={bundle}"])
    scope = {"type": "http", "method": "GET", "path": "/v2", "headers": []}
    asyncio.run(App(plane)(scope, receive, send))
    plane.close()
