"""Chunked prefill, cached prefixes and preemption: no request continues from what was computed under other edits."""

from collections.abc import Sequence
from typing import Any

import pytest
from vllm_processes import MODEL, ROOT, Called, needs_vllm, settings_of
from vllm_reference import Reference, assert_answer
from vllm_requests import active, every_kind

pytestmark = needs_vllm
NAME = "threshold"
BLOCK = 32  # the least of a processor; of 32 tokens that are cached together


@pytest.fixture(scope="module")
def chunked(vllm_process: Called, reference: Reference) -> Called:
    """An engine that reads 24 tokens in a pass, and caches prefixes in blocks."""
    options = {"block_size": BLOCK, "max_num_batched_tokens": 24, "max_num_seqs": 16, "enable_prefix_caching": True}
    vllm_process("start", str(MODEL), settings_of([{"bundle": reference.bundles[NAME]}]), **options)
    return vllm_process


def assert_all(got: Sequence[Any], requests: Sequence[Any], reference: Reference) -> None:
    for one, request in zip(got, requests, strict=True):
        assert_answer(one, request, reference, [NAME])


def long_prompt(reference: Reference, begin: int = 300, tokens: int = 76) -> list[int]:
    return list(reference.tokenizer((ROOT / "LICENSE").read_text())["input_ids"][begin : begin + tokens])


def test_prompts_that_are_read_in_parts(chunked: Called, reference: Reference) -> None:
    requests = [reference.clear(one, [NAME]) for one in every_kind(reference, NAME)]
    assert_all(chunked("generate", requests), requests, reference)


def of_one_prefix(reference: Reference, features: int) -> list[dict[str, Any]]:
    """Requests of two prompts with one beginning, under several edits."""
    first, second = (
        long_prompt(reference),
        [*long_prompt(reference)[:70], *reference.tokenizer(" The end")["input_ids"]],
    )
    a, b = active(reference, first, NAME)[:2]
    largest = reference.sae(NAME).largest
    assert largest is not None
    edits: list[dict[str, Any]] = [
        {},
        {"sae_edits": [{"feature": a, "ablate": True}]},
        {"sae_edits": [{"feature": a, "set": "x0.7"}]},
        {"sae_edits": [{"feature": b, "add": "x0.4"}], "sae_gate": "prompt"},
        {"sae_edits": [{"feature": b, "add": "x0.4"}], "sae_gate": [1, 2, 3, 50]},
    ]
    return [
        reference.clear({"ids": ids, "sae": {**asked, "sae_features": features}, "max_tokens": 8}, [NAME])
        for asked in edits
        for ids in (first, second)
    ]


def test_one_prefix_under_several_edits(chunked: Called, reference: Reference) -> None:
    requests = of_one_prefix(reference, 0)
    assert_all(chunked("generate", requests), requests, reference)
    again = [chunked("generate", [request])[0] for request in requests]
    assert_all(again, requests, reference)
    assert [one["cached"] for one in again] == [64] * len(requests), "the cache is not at work, so nothing is shown"


def test_cached_prefixes_are_read_again_where_features_are_asked_for(chunked: Called, reference: Reference) -> None:
    for features in (0, 100):  # the first fill the cache
        requests = of_one_prefix(reference, features)
        got = chunked("generate", requests)
        assert_all(got, requests, reference)
    assert [one["cached"] for one in got] == [0] * len(requests)


@pytest.mark.parametrize("gate", ["generated", "answer", "last_prompt", "prompt", "all", [70, 80, 90, 100]])
def test_a_second_turn_whose_prompt_holds_the_first_answer(chunked: Called, reference: Reference, gate: Any) -> None:
    ids = long_prompt(reference, 700)
    feature = active(reference, ids, NAME)[1]
    sae = {"sae_edits": [{"feature": feature, "add": "x0.5"}], "sae_gate": gate}
    first = reference.clear({"ids": ids, "sae": sae, "max_tokens": 30}, [NAME])
    (got,) = chunked("generate", [first])
    assert_answer(got, first, reference, [NAME])
    more = reference.tokenizer("\n\nIn other words, this means that")["input_ids"]
    second = reference.clear({"ids": [*ids, *got["tokens"][0], *more], "sae": sae, "max_tokens": 8}, [NAME])
    for features in (0, 100):
        request = {**second, "sae": {**sae, "sae_features": features}}
        assert_all(chunked("generate", [request]), [request], reference)


def test_preempted_requests_are_computed_again_under_their_edits(vllm_process: Called, reference: Reference) -> None:
    gates: tuple[Any, ...] = ("all", "generated", "answer", "last_prompt", "prompt", "text", [5, 27, 30, 35], "all")
    prompts = [long_prompt(reference, 100 + 70 * number, BLOCK - 4) for number in range(len(gates))]
    edits = [[{"feature": active(reference, ids, NAME)[1], "add": "x0.5"}] for ids in prompts]
    requests: list[dict[str, Any]] = [
        reference.clear({"ids": ids, "sae": {"sae_edits": given, "sae_gate": gate}, "max_tokens": 14}, [NAME])
        for ids, given, gate in zip(prompts, edits, gates, strict=True)
    ]
    # Each begins with a block and soon needs two, for which there is no room.
    options = {"block_size": BLOCK, "max_num_seqs": 16, "max_model_len": 128, "num_gpu_blocks_override": 12}
    vllm_process("start", str(MODEL), settings_of([{"bundle": reference.bundles[NAME]}]), **options)
    vllm_process("count_preemptions")
    for features in (0, 100):
        asked = [{**one, "sae": {**one["sae"], "sae_features": features}} for one in requests]
        assert_all(vllm_process("generate", asked), asked, reference)
        assert vllm_process("count_preemptions"), "no request was preempted, so nothing is shown"
