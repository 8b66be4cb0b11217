"""10,000 concurrent answers over HTTP: those of bundles have the bits that the library gives alone, and nobody sees
what another caller sent.
"""

import http.client
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, KINDS
from deployed_model import deploy
from numpy.typing import NDArray
from running import running_command

from sae_runtime import SAE, load, load_model
from sae_runtime.core.edits import Edit

ANSWERS, CALLERS = int(os.environ.get("ANSWERS", "10000")), 48
SIZES = (*[1] * 8, 2, 3, 5, 8, 16, 17, 64, 300)
PATIENT = ("--max-seconds", "600")  # so that a machine that has other work to do gives no 504
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # that docs/guides/serving.md states


@dataclass(frozen=True)
class Ask:
    """A request, and what its answer must be."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    expected: Mapping[str, NDArray[Any]]


def infer(model: str, expected: Mapping[str, Any], **inputs: Any) -> Ask:
    """A request of tensors: numbers as bytes, texts as JSON."""
    told, raw = [], b""
    for name, array in inputs.items():
        one: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if array.dtype == object:
            one |= {"datatype": "BYTES", "data": array.tolist()}
        else:
            own = array.tobytes()
            one |= {"datatype": "INT64" if array.dtype.kind == "i" else "FP32"}
            one["parameters"] = {"binary_data_size": len(own)}
            raw += own
        told.append(one)
    head = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Ask(f"/v2/models/{model}/infer", headers, head + raw, dict(expected))


def asks_of(name: str, sae: SAE, rng: np.random.Generator, number: int) -> Iterator[Ask]:
    """Requests of a bundle, and what the library gives alone."""
    for turn in range(number):
        x = rng.normal(0, 1.2, (int(rng.choice(SIZES)), D_IN)).astype(np.float32)
        indices, values = sae.encode_slots(x)
        match turn % 16:
            case 0 | 8:
                yield infer(f"{name}.decode", {"x_hat": sae.decode(sae.encode(x))}, indices=indices, values=values)
            case 1:
                matched = sae.encode_batch(x).falling_slots()
                yield infer(f"{name}.encode_batch", dict(zip(("indices", "values"), matched, strict=True)), x=x)
            case 2 | 3 | 4 | 5 | 6:
                x = x if turn % 2 else x[:1]
                chosen = rng.permutation(sae.d_sae)[: int(rng.integers(0, 20))]
                chosen = np.unique([*chosen, *indices[0][values[0] > 0][:4]]).astype(int).tolist()
                told = [{"feature": f, "set": round(float(rng.uniform(1, 9)), 3)} for f in chosen]
                edits = [Edit.set(one["feature"], one["set"]) for one in told]
                text = np.array([json.dumps({"edits": told})], object)
                yield infer(f"{name}.steer", {"y": sae.steer(x, edits)}, x=x, edits=text)
            case _:
                yield infer(f"{name}.encode", {"indices": indices, "values": values}, x=x)


def arrays_of(body: bytes, length: int) -> dict[str, NDArray[Any]]:
    """The outputs of an answer; those of texts as their bytes."""
    at, found = length, {}
    for one in json.loads(body[:length])["outputs"]:
        size = one["parameters"]["binary_data_size"]
        dtype = {"FP32": "<f4", "INT64": "<i8", "BYTES": "u1"}[one["datatype"]]
        array = np.frombuffer(body[at : at + size], dtype)
        found[one["name"]] = array if dtype == "u1" else array.reshape(one["shape"])
        at += size
    return found


def ask_all(address: str, mine: list[list[Ask]], judge: Callable[[int, Ask, int, bytes, str | None], None]) -> None:
    """Each caller asks its own, all at once; `judge` gets the caller, the request, the code and the answer."""
    faults = list[BaseException]()

    def caller(number: int) -> None:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=600)
        try:
            for one in mine[number]:
                connection.request("POST", one.path, one.body, dict(one.headers))
                answer = connection.getresponse()
                judge(number, one, answer.status, answer.read(), answer.getheader("inference-header-content-length"))
        except BaseException as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(len(mine))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def test_bundles_answer_with_the_bits_of_each_request_alone(bundle_of: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    paths = {f"{kind}-{d_sae}": bundle_of(kind, d_sae) for kind in KINDS for d_sae in (1_536, 24_576)}
    pool = [ask for name, path in paths.items() for ask in asks_of(name, load(path, threads=1), rng, 80)]
    order = itertools.chain.from_iterable(rng.permutation(len(pool)) for _ in range(-(-ANSWERS // len(pool))))
    mine = [[pool[number] for number in dealt] for dealt in np.array_split(list(order)[:ANSWERS], CALLERS)]
    compared = list[int]()

    def judge(number: int, asked: Ask, status: int, body: bytes, length: str | None) -> None:
        assert status == 200 and length is not None, body
        found = arrays_of(body, int(length))
        assert found.keys() == asked.expected.keys()
        for name, array in asked.expected.items():
            assert found[name].shape == array.shape, asked.path
            assert found[name].tobytes() == array.tobytes(), (asked.path, name, array.shape)
        compared.append(number)

    with running_command(*(f"{name}={path}" for name, path in paths.items()), "--no-access-log", *PATIENT) as (
        address,
        _,
    ):
        ask_all(address, mine, judge)
    assert len(compared) == ANSWERS


def test_no_caller_of_a_model_sees_what_another_sent(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")})
    model, mine = load_model(folder, threads=1), list[list[Ask]]()
    for number in range(40):  # a word, a feature and a name of its own
        text = " ".join([f"w{number}"] * (1 + number % 7))
        edit = {"feature": number, "set": 5.0 + number}
        seen, ran = model.features(text), model.run(text, Edit.set(number, 5.0 + number))
        tokens = b"".join(len(one.encode()).to_bytes(4, "little") + one.encode() for one in seen.tokens)
        features = {"ids": seen.ids, "tokens": np.frombuffer(tokens, np.uint8)}
        told, canary = np.array([json.dumps([edit])], object), f"canary-{number}-"
        wrong = np.array([json.dumps([{"feature": canary, "set": 1}])], object)
        asks = [
            infer("model.features", features, text=np.array([text], object)),
            infer("model.run", ran, text=np.array([text], object), edits=told),
            infer("model.run", {}, text=np.array([text], object), edits=wrong),
        ]
        mine.append(asks * 12)

    def judge(number: int, asked: Ask, status: int, body: bytes, length: str | None) -> None:
        assert not any(f"canary-{other}-".encode() in body for other in range(40) if other != number)
        if not asked.expected:
            assert status == 400 and f"canary-{number}-".encode() in body, body
            return
        assert status == 200 and length is not None, body
        found = arrays_of(body, int(length))
        for name, array in asked.expected.items():
            np.testing.assert_allclose(found[name], array, **TOLERANCE)

    with running_command(f"model={folder}", "--no-access-log") as (address, _):
        ask_all(address, mine, judge)


@pytest.mark.parametrize("where", ["text", "edits"])
def test_nothing_of_a_request_is_in_the_log(bundle_of: Callable[..., Path], tmp_path: Path, where: str) -> None:
    folder, log = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")}), tmp_path / "log"
    given = {"text": np.array(["w1 canary"], object), "edits": np.array(["[]"], object)}
    given[where] = np.array(["canary"], object)
    ask = infer("model.run", {}, **given)
    with running_command(f"model={folder}", log=log) as (address, _):
        ask_all(address, [[ask]], lambda *answer: None)
        body = json.dumps({"model": "canary", "input": ["canary"], "sae": {"edits": "canary"}}).encode()
        ask_all(address, [[Ask(p, {}, body, {}) for p in ("/v1/features", "/v1/embeddings")]], lambda *answer: None)
    assert "canary" not in log.read_text() and "/v1/features" in log.read_text()
