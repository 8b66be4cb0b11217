"""vLLM alone, as the other tests of this folder start it: its greedy tokens are those of transformers."""

import json
from pathlib import Path

import pytest
import torch
from running import asked
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_processes import MODEL, Raised, api_server, called, needs_vllm

pytestmark = needs_vllm
CALLS = Path(__file__).with_name("llm_calls.py")


def test_plain(tmp_path: Path) -> None:
    tok = AutoTokenizer.from_pretrained(MODEL)
    ids = [tok(t)["input_ids"] for t in ("The capital of France is", "Once upon a time there was a little")]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    want = [model.generate(torch.tensor([i]), do_sample=False, max_new_tokens=24)[0, len(i) :].tolist() for i in ids]
    with called(CALLS, tmp_path / "log") as call:
        call("start", str(MODEL))
        got = call("generate", [{"ids": i} for i in ids])
        assert [g["tokens"][0] for g in got] == want
        with pytest.raises(Raised, match="max_tokens"):
            call("generate", [{"ids": [1], "max_tokens": -1}])
        assert call("generate", [{"ids": ids[0]}])[0]["tokens"][0] == want[0]
    with api_server(MODEL, tmp_path / "log2", "--enforce-eager", "--max-model-len", "512") as address:
        code, body, _ = asked(
            address,
            "POST",
            "/v1/completions",
            {"model": str(MODEL), "prompt": ids[0], "max_tokens": 24, "temperature": 0, "return_token_ids": True},
            {"Content-Type": "application/json"},
        )
        assert code == 200, body
        assert json.loads(body)["choices"][0]["token_ids"] == want[0]
