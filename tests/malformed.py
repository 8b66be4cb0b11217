"""Requests that are wrong in every way that we thought of, from a seed."""

import gzip
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MODELS: tuple[str, ...] = (
    "mine.encode",
    "mine.encode_batch",
    "mine.decode",
    "mine.steer",
    "text.features",
    "text.run",
    "text.embed",
)
MODELS += (
    "mine",
    "other.encode",
    "mine.fly",
    "..",
    "%2e%2e%2fetc",
    "mine.encode%00",
    "\u00e9".encode().decode("latin-1"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, 1e308, "", "a", "\ud800", "\x00", [], {}),
    *([None], [[]], [1, "a"], {"a": {}}, "NaN", ["x"], [True], [[1.0], [2.0, 3.0]]),
)
_EDITS = (
    *({"feature": 10**9, "set": 1}, {"feature": -1, "set": 1}, {"feature": 3}, {"set": 1}, {"feature": 3, "set": "x"}),
    *({"feature": 3, "set": 1, "add": 2}, {"feature": 3, "fly": 1}, {"feature": "no label", "ablate": True}, 7, None),
    *(
        {"feature": 3, "set": 1e39},
        {"feature": 3, "scale": "x2"},
        {"feature": True, "set": 1},
        {"feature": 3, "set": []},
    ),
)


@dataclass(frozen=True)
class Wrong:
    """A request as its bytes, what is wrong with it, and whether the server might wait for more of it."""

    what: str
    sent: bytes
    ends: bool


def requests(count: int, seed: int) -> Iterator[Wrong]:
    """So many requests, each of a way that is drawn."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        way = _WAYS[rng.integers(len(_WAYS))]
        yield Wrong(way.__name__, way(rng), way in _CUT)


def answered(address: str, wrong: Wrong, seconds: float = 30.0) -> int:
    """The code of the first answer; 0 where the server closed the connection without one.

    Raises:
        TimeoutError: it did neither in time.
    """
    host, port = address.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            connection.sendall(wrong.sent)
            if wrong.ends:  # who is answered late would miss it
                connection.shutdown(socket.SHUT_WR)
            got = b""
            while b"\r\n" not in got and (part := connection.recv(65536)):
                got += part
        except TimeoutError:
            raise
        except OSError:  # the server closed it
            return 0
    return int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.1 ") else 0


def _post(path: str, body: bytes, *headers: str, length: str | None = None, method: str = "POST") -> bytes:
    size = str(len(body)) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[rng.integers(len(values))]


def _infer(rng: np.random.Generator) -> str:
    version = _pick(rng, ("", "", "", "/versions/1", "/versions/9", "/versions/-1", "/versions/x", "/versions/1e3"))
    return f"/v2/models/{_pick(rng, MODELS)}{version}/infer"


def _sound(rng: np.random.Generator) -> dict[str, Any]:
    n = int(rng.integers(1, 4))
    x = rng.normal(size=(n, 24)).round(3)
    asked: dict[str, Any] = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [n, 24], "data": x.ravel().tolist()}]
    }
    if rng.random() < 0.3:
        asked["inputs"] = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w1 w2"]}]
    return asked


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def changed_field(rng: np.random.Generator) -> bytes:
    asked = _sound(rng)
    place: Any = _pick(rng, (asked, asked["inputs"][0], asked.setdefault("parameters", {})))
    keys = ("name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id", "timeout", "max_new_tokens")
    place[_pick(rng, keys)] = _pick(rng, _VALUES)
    return _post(_infer(rng), _dumped(asked))


def missing_field(rng: np.random.Generator) -> bytes:
    asked = _sound(rng)
    place: Any = _pick(rng, (asked, asked["inputs"][0]))
    place.pop(_pick(rng, [*place]))
    return _post(_infer(rng), _dumped(asked))


def wrong_value(rng: np.random.Generator) -> bytes:
    asked = _sound(rng)
    data = asked["inputs"][0]["data"]
    data[rng.integers(len(data))] = _pick(rng, _VALUES)
    return _post(_infer(rng), _dumped(asked))


def wrong_shape(rng: np.random.Generator) -> bytes:
    asked = _sound(rng)
    sizes = (0, 1, -1, 2, 23, 24, 25, 2**31, 2**62, 2**64, 10**40, 1.0, "1", None)
    asked["inputs"][0]["shape"] = [_pick(rng, sizes) for _ in range(rng.integers(0, 12))]
    return _post(_infer(rng), _dumped(asked))


def wrong_outputs(rng: np.random.Generator) -> bytes:
    names = ("indices", "values", "y", "indices", 3, None, "")
    parameters: tuple[Any, ...] = (
        None,
        {"binary_data": 1},
        {"binary_data": True},
        {"classification": 3},
        [],
        {"shared_memory_region": "a"},
    )
    outputs = [{"name": _pick(rng, names), "parameters": _pick(rng, parameters)} for _ in range(rng.integers(0, 4))]
    return _post(_infer(rng), _dumped(_sound(rng) | {"outputs": outputs}))


def wrong_edits(rng: np.random.Generator) -> bytes:
    edits = [_pick(rng, _EDITS) for _ in range(rng.integers(1, 100))]
    texts = (
        json.dumps({"edits": edits}),
        json.dumps(edits),
        "{",
        "",
        "[" * 5000,
        json.dumps({"edits": [], "gate": _pick(rng, (1, "x"))}),
    )
    asked = _sound(rng)
    asked["inputs"].append({"name": "edits", "datatype": "BYTES", "shape": [1], "data": [_pick(rng, texts)]})
    return _post(_infer(rng), _dumped(asked))


def wrong_steer(rng: np.random.Generator) -> bytes:
    features = {
        "name": "features",
        "datatype": "INT64",
        "shape": [1, 1],
        "data": [_pick(rng, (-1, 150, 2**62, 0.5, "a", 3))],
    }
    more = {
        "name": _pick(rng, ("shift", "scale", "low", "high", "gate", "k")),
        "datatype": "FP32",
        "shape": [1, 1],
        "data": [1e38],
    }
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2, 24], "data": rng.normal(size=48).tolist()}
    return _post("/v2/models/mine.steer/infer", _dumped({"inputs": [x, features, more, more][: rng.integers(1, 5)]}))


def twice(rng: np.random.Generator) -> bytes:
    asked = _sound(rng)
    asked["inputs"] *= int(rng.integers(2, 50))
    body = _dumped(asked)
    return _post(_infer(rng), _pick(rng, (body, b'{"inputs": [], ' + body[1:])))


def broken_json(rng: np.random.Generator) -> bytes:
    body = bytearray(_dumped(_sound(rng)))
    for _ in range(rng.integers(1, 6)):
        body[rng.integers(len(body))] = rng.integers(256)
    return _post(_infer(rng), bytes(body[: rng.integers(1, len(body) + 1)]))


def odd_json(rng: np.random.Generator) -> bytes:
    depth = int(rng.integers(50, 200_000))
    odd = (
        *(
            b"[" * depth,
            b'{"a":' * depth,
            b'{"inputs":' + b"[" * depth + b"]" * depth + b"}",
            b"NaN",
            b"null",
            b"[]",
            b'"a"',
        ),
        *(
            b"",
            b"{}",
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
            b'{"id":"\xff"}',
            b"1" * depth,
            b'{"a":' + b"9" * depth + b"}",
            bytes(depth),
        ),
        *(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,24],"data":[' + b"1e999," * 23 + b"NaN]}]}",),
    )
    return _post(_infer(rng), _pick(rng, odd))


def binary(rng: np.random.Generator) -> bytes:
    datatype = _pick(rng, ("FP32", "FP16", "FP64", "INT64", "INT8", "UINT64", "BOOL", "BF16", "BYTES", "STRING"))
    n, raw = int(rng.integers(0, 4)), rng.bytes(int(rng.integers(0, 2000)))
    size = _pick(rng, (len(raw), len(raw), 96 * n, 0, -1, 2**40, "9", None, 1.5, True))
    tensor = {
        "name": _pick(rng, ("x", "text", "indices")),
        "datatype": datatype,
        "shape": [n, 24][: rng.integers(1, 3)],
    }
    text = _dumped(
        {"inputs": [tensor | {"parameters": {"binary_data_size": size}}], "parameters": {"binary_data_output": True}}
    )
    length = _pick(
        rng, (len(text), len(text), 0, len(text) - 1, len(text) + len(raw) + 1, -1, 2**70, "x", "\xb2", "1_0")
    )
    return _post(_infer(rng), text + raw, f"Inference-Header-Content-Length: {length}")


def bytes_of_texts(rng: np.random.Generator) -> bytes:
    raw = b"".join(struct.pack("<I", _pick(rng, (0, 3, 2**31, 2**32 - 1))) + b"abc" for _ in range(rng.integers(0, 5)))
    tensor = {
        "name": "text",
        "datatype": "BYTES",
        "shape": [int(rng.integers(0, 5))],
        "parameters": {"binary_data_size": len(raw)},
    }
    text = _dumped({"inputs": [tensor]})
    return _post("/v2/models/text.features/infer", text + raw, f"Inference-Header-Content-Length: {len(text)}")


def not_finite(rng: np.random.Generator) -> bytes:
    x = rng.normal(size=(2, 24)).astype(np.float32)
    x[rng.integers(2), rng.integers(24)] = _pick(rng, (np.nan, np.inf, -np.inf, 3e38))
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 24], "parameters": {"binary_data_size": x.nbytes}}
    text = _dumped({"inputs": [tensor]})
    return _post(_infer(rng), text + x.tobytes(), f"Inference-Header-Content-Length: {len(text)}")


def compressed(rng: np.random.Generator) -> bytes:
    body = _dumped(_sound(rng))
    bomb = bytes(int(_pick(rng, (10, 100_000, 4_000_000))))
    packed = _pick(
        rng,
        (gzip.compress(bomb), zlib.compress(bomb), gzip.compress(gzip.compress(bomb)), body, gzip.compress(body)[:-4]),
    )
    return _post(
        _infer(rng), packed, f"Content-Encoding: {_pick(rng, ('gzip', 'deflate', 'br', 'gzip, gzip', 'x', ''))}"
    )


def too_large(rng: np.random.Generator) -> bytes:
    n = int(rng.integers(101, 400))
    tensor = {"name": "x", "datatype": "FP32", "shape": [n, 24], "parameters": {"binary_data_size": 96 * n}}
    text = _dumped({"inputs": [tensor]})
    return _post(
        _infer(rng),
        text + bytes(96 * n) + bytes(int(_pick(rng, (0, 5, 2_000_000)))),
        f"Inference-Header-Content-Length: {len(text)}",
    )


def lying_length(rng: np.random.Generator) -> bytes:
    body = _dumped(_sound(rng))
    return _post(
        _infer(rng),
        body,
        length=_pick(rng, ("0", "5", "-1", str(len(body) - 1), "9" * 30, "x", "1e3", "0x10", " ", "5, 5")),
    )


def chunked(rng: np.random.Generator) -> bytes:
    coding = _pick(rng, ("chunked", "chunked, chunked", "x"))
    head: str = f"POST {_infer(rng)} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {coding}\r\n"
    head += _pick(rng, ("", "Content-Length: 3\r\n")) + "Connection: close\r\n\r\n"
    body = _dumped(_sound(rng))
    parts = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    ends = (parts, parts[:-3], b"zz\r\n" + body, b"ffffffffffffffffff\r\n" + body, b"-1\r\n\r\n", b"0\r\n\r\n")
    chosen: bytes = _pick(rng, ends)
    return head.encode("latin-1") + chosen


def garbage(rng: np.random.Generator) -> bytes:
    sound = _post(_infer(rng), _dumped(_sound(rng))).replace(b"Connection: close\r\n", b"")
    noise = rng.bytes(int(rng.integers(1, 500)))
    long = b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"
    many = b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(20_000)) + b"\r\n"
    http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return bytes(
        _pick(
            rng,
            (
                noise,
                sound + noise,
                noise + sound,
                sound * 5 + noise,
                long,
                many,
                http2,
                b"\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
            ),
        )
    )


def other_route(rng: np.random.Generator) -> bytes:
    paths: tuple[str, ...] = (
        "/v2/models/../../etc/passwd",
        "/etc/passwd",
        "//",
        "/v2/models//infer",
        "/v2/repository/models/mine/load",
        "/v3",
        "*",
        "/%ff",
    )
    paths += (
        "/v1/embeddings",
        "/v1/features",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models/../x",
        "/page/../../x",
        "/metrics/x",
    )
    return _post(
        _pick(rng, paths),
        _dumped(_pick(rng, (*_VALUES, _sound(rng)))),
        method=_pick(rng, ("POST", "GET", "PUT", "DELETE", "HEAD", "BREW")),
    )


def openai(rng: np.random.Generator) -> bytes:
    asked: dict[str, Any] = {
        "model": "text",
        "input": "w1",
        "messages": [{"role": "user", "content": "w1"}],
        "prompt": "w1",
    }
    for _ in range(rng.integers(1, 3)):
        keys = (
            "model",
            "input",
            "messages",
            "prompt",
            "sae",
            "features",
            "encoding_format",
            "max_tokens",
            "stream",
            "stop",
            "n",
            "temperature",
            "seed",
        )
        asked[_pick(rng, keys)] = _pick(rng, (*_VALUES, {"edits": [_pick(rng, _EDITS)]}))
    return _post(f"/v1/{_pick(rng, ('embeddings', 'features', 'chat/completions', 'completions'))}", _dumped(asked))


_WAYS: tuple[Callable[[np.random.Generator], bytes], ...] = (
    *(
        changed_field,
        missing_field,
        wrong_value,
        wrong_shape,
        wrong_outputs,
        wrong_edits,
        wrong_steer,
        twice,
        broken_json,
    ),
    *(
        odd_json,
        binary,
        bytes_of_texts,
        not_finite,
        compressed,
        too_large,
        lying_length,
        chunked,
        garbage,
        other_route,
        openai,
    ),
)
_CUT = (lying_length, chunked, garbage)
