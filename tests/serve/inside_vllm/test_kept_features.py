"""Features that wait for their callers: apart by ticket, request and answer, and bounded."""

from typing import Any

import numpy as np

from sae_runtime.serve.vllm.kept_features import KeptFeatures, Piece


def plan(ticket: str, request: str, answers: int = 1) -> dict[str, Any]:
    return {"ticket": ticket, "request": request, "answers": answers}


def piece(position: int, *rows: list[float], sae: str = "mine") -> Piece:
    """Features 0, 1, ... of tokens, with these values."""
    values = np.array(rows, np.float32)
    return Piece(sae, position, np.tile(np.arange(values.shape[1]), (len(rows), 1)), values)


def numbers(taken: dict[str, bytes]) -> tuple[list[int], list[float]]:
    return np.frombuffer(taken["positions"], np.int32).tolist(), np.frombuffer(taken["values"], np.float32).tolist()


def test_answers_requests_and_tickets_are_kept_apart() -> None:
    kept = KeptFeatures(most=100)
    for number, request, ticket in (("0_cmpl-1", "cmpl", "t"), ("1_cmpl-1", "cmpl", "t"), ("0_other-1", "other", "u")):
        kept.open(number, plan(ticket, request, answers=2))
        kept.add(number, piece(0, [len(request), 0.0]))
    kept.add("0_cmpl-1", piece(1, [7.0, 8.0], sae="second"))
    taken = kept.take(["t", "unknown"])
    assert taken["unknown"] == {} and sorted(taken["t"]["cmpl"]) == [0, 1]
    assert numbers(taken["t"]["cmpl"][0]["second"]) == ([1], [7.0, 8.0])
    assert numbers(taken["t"]["cmpl"][1]["mine"]) == ([0], [4.0])
    assert kept.take(["t"]) == {"t": {}}
    kept.drop(["u"])
    assert kept.take(["u"]) == {"u": {}}


def test_the_oldest_are_dropped_when_too_many_tokens_wait_and_their_later_pieces_too() -> None:
    kept = KeptFeatures(most=5)
    for name in "abc":
        kept.open(name, plan(name, name))
        kept.add(name, piece(0, [1.0], [2.0]))
    kept.add("a", piece(2, [3.0]))
    assert kept.take(["a"]) == {"a": {}}
    assert [numbers(kept.take([name])[name][name][0]["mine"]) for name in "bc"] == [([0, 1], [1.0, 2.0])] * 2


def test_the_last_reading_of_a_token_counts() -> None:
    kept = KeptFeatures(most=100)
    kept.open("a", plan("a", "a"))
    for start, value in ((0, 1.0), (2, 2.0), (1, 5.0)):
        kept.add("a", piece(start, [value, 0.5], [value, 0.0]))
    taken = kept.take(["a"])["a"]["a"][0]["mine"]
    assert numbers(taken) == ([0, 1, 2, 3], [1.0, 0.5, 5.0, 0.5, 5.0, 2.0])
    assert np.frombuffer(taken["indptr"], np.int64).tolist() == [0, 2, 4, 5, 6]
