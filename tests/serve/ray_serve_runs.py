"""A run of Ray Serve in a network of its own: BUNDLE MODEL. It prints what it saw as JSON.

Two replicas answer; one of them is killed while callers ask, and Ray starts another.
"""

import http.client
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

PORT = 18330


def ask(path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        sent = None if body is None else json.dumps(body).encode()
        connection.request("GET" if sent is None else "POST", path, sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said[:1] in (b"{", b"[") else said.decode()
    finally:
        connection.close()


def encode(x: Any) -> tuple[int, Any]:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return ask("/v2/models/mine.encode/infer", {"inputs": [tensor]})


def steer(x: Any, **edit: Any) -> int:
    tensors = [
        {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()},
        {"name": "edits", "shape": [1], "datatype": "BYTES", "data": [json.dumps({"edits": [edit]})]},
    ]
    return ask("/v2/models/mine.steer/infer", {"inputs": tensors})[0]


def replicas() -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, uts = (process / "cmdline").read_bytes(), os.readlink(process / "ns" / "net")
        except OSError:
            continue
        if words.startswith(b"ray::ServeReplica") and uts == os.readlink("/proc/self/ns/net"):
            found.add(int(process.name))
    return found


def main() -> None:
    bundle, model = sys.argv[1:]
    import ray
    from ray import serve

    from sae_runtime import load
    from sae_runtime.serve.ray_app import application

    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=200 << 20, num_cpus=4)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(
        application(
            {
                "paths": [f"mine={bundle}", f"words={model}"],
                "limits": {"rows": 64},
                "policy": {"largest_edit": 5.0, "refuse_feature": ["mine:4"]},
                "options": {"num_replicas": 2},
            }
        )
    )
    sae, x = load(bundle), np.random.default_rng(0).standard_normal((5, 24), dtype=np.float32)
    indices, values = sae.encode_slots(x)
    seen: dict[str, Any] = {"ready": ask("/v2/health/ready")[0]}

    def right(answer: tuple[int, Any]) -> bool:
        code, said = answer
        if code != 200:
            return False
        got = {one["name"]: one for one in said["outputs"]}
        same = np.array_equal(np.array(got["indices"]["data"]).reshape(indices.shape), indices)
        return same and np.array_equal(np.float32(got["values"]["data"]).reshape(values.shape), values)

    seen["right"] = all(right(encode(x)) for _ in range(8))
    seen["features"] = ask("/v1/features", {"model": "words", "input": ["w4 w5"]})
    seen["wrong"] = [encode(x[:, :3])[0], encode(np.zeros((65, 24), np.float32))[0], ask("/v2/models/no")[0]]

    seen["edits"] = [steer(x, feature=3, set=5.0), steer(x, feature=3, set=5.1), steer(x, feature=4, set=1.0)]
    seen["refused"] = []
    wrongs: list[dict[str, Any]] = [
        {"polcy": {}},
        {"policy": {"largest": 5}},
        {"policy": {"largest_edit": "5"}},
        {"limits": {"row": 5}},
    ]
    for wrong in wrongs:
        try:
            application({"paths": bundle, **wrong})
        except ValueError as error:
            seen["refused"].append(str(error))

    before, codes, done = replicas(), [], threading.Event()

    def call() -> None:
        while not done.is_set():
            try:
                answer = encode(x)
                codes.append(answer[0] if answer[0] != 200 or right(answer) else -1)
            except (OSError, http.client.HTTPException):
                codes.append(0)
            time.sleep(0.02)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for one in callers:
        one.start()
    time.sleep(1)
    os.kill(min(before), signal.SIGKILL)
    end = time.monotonic() + 150
    while time.monotonic() < end and not (len(replicas()) == 2 and replicas() != before):
        time.sleep(0.2)
    killed = len(codes)
    time.sleep(3)
    done.set()
    for one in callers:
        one.join()
    seen |= {"replaced": len(replicas() - before), "failed": sum(code != 200 for code in codes), "asked": len(codes)}
    seen |= {"wrong_bits": codes.count(-1), "failed_afterwards": sum(code != 200 for code in codes[killed + 20 :])}
    serve.shutdown()
    ray.shutdown()
    sys.stdout.write(f"SEEN {json.dumps(seen)}\n")


if __name__ == "__main__":
    main()
