"""Every call of the protocols, by the clients that people have; the table in docs/results/clients.md is made of what
they get.

`SAE_RUNTIME_WRITE_TABLES=1` writes the table anew.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
from conftest import make_x
from deployed_model import deploy
from running import running

import sae_runtime
from sae_runtime.serve.plane import Plane

DOCUMENT = Path(__file__).parents[2] / "docs/results/clients.md"
BEGIN, END = "<!-- calls: written by tests/serve/test_calls_of_clients.py -->\n", "<!-- end of calls -->"
_X = {"name": "x", "datatype": "FP32", "shape": [1, 24], "data": [0.5] * 24}
ENCODE = json.dumps({"inputs": [_X]})
CURL = {
    "GET /v2": ["/v2"],
    "GET /v2/health/live": ["/v2/health/live"],
    "GET /v2/health/ready": ["/v2/health/ready"],
    "POST /v2/repository/index": ["/v2/repository/index", "-d", "{}"],
    "GET /v2/models/sae.encode": ["/v2/models/sae.encode"],
    "GET /v2/models/sae.encode/versions/1/ready": ["/v2/models/sae.encode/versions/1/ready"],
    "POST /v2/models/sae.encode/infer": ["/v2/models/sae.encode/infer", "-d", ENCODE],
    "POST /v2/models/sae.encode/infer, no JSON": ["/v2/models/sae.encode/infer", "-d", "{"],
    "GET /metrics": ["/metrics"],
    "POST /v1/features": ["/v1/features", "-d", '{"model": "model", "input": ["w1 w2"]}'],
}


def test_every_call_of_every_client(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    bundle = bundle_of("mutual")
    model = deploy(tmp_path / "model", "bert", {"bundle": bundle})
    rows = list[tuple[str, str, Any]]()
    with running(Plane.open([f"sae={bundle}", f"model={model}"])) as address:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("triton_calls.py")), address], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        _, values = sae_runtime.load(bundle, threads=1).encode_slots(make_x(7))
        assert len(told["values"]) == 4
        for found in told["values"]:
            np.testing.assert_array_equal(np.array(found, np.float32), values)
        rows += [("tritonclient", name, answer) for name, answer in told["calls"].items()]
        for name, words in CURL.items():
            command = ["curl", "-s", "-o", "-", "-w", "\n%{http_code}", address + words[0], *words[1:]]
            body, _, code = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
            told_: Any = json.loads(body) if body.startswith(("{", "[")) else "text"
            rows.append(("curl", name, f"{code}: {told_['error'] if 'error' in told_ else fields(told_)}"))
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            rows.append(("openai", "models.list()", [one.id for one in client.models.list()]))
            for form in ("float", "base64"):
                made = client.embeddings.create(model="model", input=["w1", "w2 w3"], encoding_format=form)
                rows.append(("openai", f'embeddings.create(encoding_format="{form}")', f"{len(made.data)} vectors"))
            steered = {"sae": {"edits": [{"feature": 3, "set": 8.0}]}}
            moved = client.embeddings.create(model="model", input="w1", extra_body=steered)
            rows.append(("openai", "embeddings.create(extra_body=sae)", f"{len(moved.data)} vectors"))
    made_table = table(rows)
    text = DOCUMENT.read_text()
    if os.environ.get("SAE_RUNTIME_WRITE_TABLES"):
        DOCUMENT.write_text(text.partition(BEGIN)[0] + BEGIN + made_table + END + text.partition(END)[2])
    assert text.partition(BEGIN)[2].partition(END)[0] == made_table, "run this test with SAE_RUNTIME_WRITE_TABLES=1"


def fields(answer: Any) -> str:
    return (
        f"{len(answer)} entries"
        if isinstance(answer, list)
        else answer
        if isinstance(answer, str)
        else ", ".join(answer)
    )


def table(rows: list[tuple[str, str, Any]]) -> str:
    lines = ["| client | call | answer |", "|---|---|---|"]
    lines += [f"| {client} | `{call}` | {_shown(answer)} |" for client, call, answer in rows]
    return "\n".join(lines) + "\n"


def _shown(answer: Any) -> str:
    if isinstance(answer, dict):
        return ", ".join(f"{name} {value}" for name, value in answer.items())
    return "yes" if answer is True else ", ".join(answer) if isinstance(answer, list) else str(answer)
