"""Calls of tritonclient against a server, in a process of its own; prints what each gave as JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

X = np.random.default_rng(1).normal(0, 1.2, (7, 24)).astype(np.float32)
CALLS: dict[str, Callable[[Any], Any]] = {
    "is_server_live()": lambda c: c.is_server_live(),
    "is_server_ready()": lambda c: c.is_server_ready(),
    "get_server_metadata()": lambda c: c.get_server_metadata()["extensions"],
    "get_model_repository_index()": lambda c: len(c.get_model_repository_index()),
    'is_model_ready("sae.encode")': lambda c: c.is_model_ready("sae.encode"),
    'is_model_ready("sae.encode", "1")': lambda c: c.is_model_ready("sae.encode", "1"),
    'get_model_metadata("sae.encode")': lambda c: [
        one["name"] for one in c.get_model_metadata("sae.encode")["outputs"]
    ],
    'get_model_metadata("sae.encode", "1")': lambda c: c.get_model_metadata("sae.encode", "1")["versions"],
    'infer("sae.encode"), as bytes': lambda c: encoded(c, binary=True),
    'infer("sae.encode"), as JSON': lambda c: encoded(c, binary=False),
    'infer("sae.encode", "1"), gzip': lambda c: encoded(c, binary=True, version="1", compression="gzip"),
    'infer("sae.encode"), deflate': lambda c: encoded(c, binary=True, compression="deflate"),
    'async_infer("sae.encode")': lambda c: shapes(c.async_infer("sae.encode", [given(True)]).get_result()),
    'infer("sae.encode", outputs=["values"], request_id="7")': lambda c: one_output(c),
    'infer("sae.steer"), edits as BYTES': lambda c: steered(c),
    'infer("model.features"), BYTES': lambda c: of_text(c, "features", ["row_splits", "ids", "indices", "values"]),
    'infer("model.embed"), BYTES': lambda c: of_text(c, "embed", ["embedding"]),
    'get_model_metadata("none.encode")': lambda c: c.get_model_metadata("none.encode"),
    'infer("sae.encode"), another shape': lambda c: c.infer("sae.encode", [given(True, X[:, :20])]),
    'load_model("sae.encode")': lambda c: c.load_model("sae.encode"),
}


def given(binary: bool, x: NDArray[Any] = X, name: str = "x", datatype: str = "FP32") -> Any:
    found = http.InferInput(name, list(x.shape), datatype)
    found.set_data_from_numpy(x, binary_data=binary)
    return found


def shapes(result: Any) -> dict[str, Any]:
    return {one["name"]: one["shape"] for one in result.get_response()["outputs"]}


def encoded(c: Any, binary: bool, version: str = "", compression: str | None = None) -> dict[str, Any]:
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("indices", "values")]
    result = c.infer(
        "sae.encode",
        [given(binary)],
        version,
        outputs=outputs,
        request_compression_algorithm=compression,
    )
    VALUES.append(result.as_numpy("values").tolist())
    return shapes(result)


def one_output(c: Any) -> dict[str, Any]:
    result = c.infer("sae.encode", [given(True)], outputs=[http.InferRequestedOutput("values")], request_id="7")
    return {**shapes(result), "id": result.get_response()["id"]}


def steered(c: Any) -> dict[str, Any]:
    edits = np.array([json.dumps({"edits": [{"feature": 3, "set": 8.0}]}).encode()], object)
    return shapes(c.infer("sae.steer", [given(True), given(True, edits, "edits", "BYTES")]))


def of_text(c: Any, operation: str, names: list[str]) -> dict[str, Any]:
    texts = np.array([b"w1 w2", b"w3"], object)
    result = c.infer(f"model.{operation}", [given(True, texts, "text", "BYTES")])
    found = shapes(result)
    return {name: found[name] for name in names}


VALUES: list[Any] = []
client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
told = {}
for name, call in CALLS.items():
    try:
        told[name] = call(client)
    except InferenceServerException as error:
        told[name] = f"{error.status()}: {error.message()}"
sys.stdout.write(json.dumps({"calls": told, "values": VALUES}))
