"""An engine in a process of its own, as vLLM starts it by default."""

from pathlib import Path

from vllm_processes import LLM_CALLS, MODEL, called, needs_vllm, settings_of
from vllm_reference import Reference, assert_answer
from vllm_requests import every_kind

pytestmark = needs_vllm


def test_twelve_requests_of_every_edit_and_gate(reference: Reference, tmp_path: Path) -> None:
    requests = [reference.clear(one, ["threshold"]) for one in every_kind(reference, "threshold")]
    with called(LLM_CALLS, tmp_path / "log", VLLM_ENABLE_V1_MULTIPROCESSING="1") as call:
        call("start", str(MODEL), settings_of([{"bundle": reference.bundles["threshold"]}]), block_size=32)
        for _ in range(2):
            for got, request in zip(call("generate", requests), requests, strict=True):
                assert_answer(got, request, reference, ["threshold"])
