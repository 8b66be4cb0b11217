"""Prompts that are read in one run, compared with each alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy

from sae_runtime import Edit, Model, load_model
from sae_runtime.deployed.host_inputs import Past, Port
from sae_runtime.generation import caches
from sae_runtime.generation.caches import Columns, Rows
from sae_runtime.generation.decoder import Decoder
from sae_runtime.generation.loop import Loop
from sae_runtime.generation.request import Piece, Request

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [" ".join(f"w{(7 * row + 3 * place) % 31}" for place in range(12 - row % 2)) for row in range(5)] + ["w3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Model:
    folder = tmp_path_factory.mktemp("together") / "model"
    return load_model(deploy(folder, "gpt2", {"bundle": bundle_of("mutual", D_SAE, 4)}), threads=1)


def decoder_of(model: Model) -> Decoder:
    model.generate("w1").close()
    assert model._decoder is not None
    return model._decoder


def asked(model: Model, number: int) -> Request:
    tokens, stream = model.tokenizer.encode([PROMPTS[number]])[0], model.tokenizer.stream()
    edits: Any = {"sae": [Edit.set(3, 60.0)]} if number % 2 else {}
    gate: Any = "last_prompt" if number == 3 else "all"
    return Request(tokens, stream, edits=edits, gate=gate, most=1 if number == 4 else 6, features=number != 2)


def pieces_of(decoder: Decoder, requests: list[Request]) -> list[list[Piece]]:
    loop, found = Loop(decoder), {id(one): list[Piece]() for one in requests}
    for one in requests:
        loop.add(one)
    while len(loop):
        for one, piece in loop.step():
            assert isinstance(piece, Piece), piece
            found[id(one)].append(piece)
    return [found[id(one)] for one in requests]


def compare(model: Model, decoder: Decoder) -> None:
    together = pieces_of(decoder, [asked(model, number) for number in range(len(PROMPTS))])
    for number, own in enumerate(together):
        (alone,) = pieces_of(decoder, [asked(model, number)])
        assert [(piece.id, piece.text, piece.finished) for piece in own] == [
            (piece.id, piece.text, piece.finished) for piece in alone
        ]
        for one, other in zip(own, alone, strict=True):
            assert set(one.features) == set(other.features) == (set() if number == 2 else {"sae"})
            for name in other.features:
                f, expected = one.features[name].to_dense(), other.features[name].to_dense()
                np.testing.assert_allclose(f, expected, atol=1e-4 * max(expected.max(), 1))


def spied(monkeypatch: pytest.MonkeyPatch) -> list[list[int] | None]:
    """The numbers of tokens in each run from now on."""
    runs: list[list[int] | None] = []
    run = Decoder.run

    def spy(self: Decoder, ids: Any, cache: Any, *, counts: Any = None, **more: Any) -> Any:
        runs.append([ids.shape[1]] * len(ids) if counts is None else counts.tolist())
        return run(self, ids, cache, counts=counts, **more)

    monkeypatch.setattr(Decoder, "run", spy)
    return runs


def test_prompts_of_about_one_length_are_read_in_one_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, decoder = spied(monkeypatch), decoder_of(model)
    runs.clear()
    compare(model, decoder)
    assert runs[0] is not None and sorted(runs[0]) == [11, 11, 12, 12, 12] and runs[1] == [1]


def test_a_graph_that_gives_the_last_logits_alone_reads_prompts_of_one_length_together(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, decoder = spied(monkeypatch), dataclasses.replace(decoder_of(model), pads=False)
    runs.clear()
    compare(model, decoder)
    assert runs[:3] == [[12] * 3, [11] * 2, [1]]


def test_who_fails_in_a_run_of_prompts_does_not_end_the_others(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, run = decoder_of(model), Decoder.run

    def short(self: Decoder, ids: Any, *more: Any, **settings: Any) -> Any:
        if ids.shape[0] * ids.shape[1] > 12:
            raise MemoryError("too little memory")
        return run(self, ids, *more, **settings)

    expected = [pieces_of(decoder, [asked(model, number)]) for number in range(3)]
    monkeypatch.setattr(Decoder, "run", short)
    found = pieces_of(decoder, [asked(model, number) for number in range(3)])
    for own, (alone,) in zip(found, expected, strict=True):
        assert [piece.id for piece in own] == [piece.id for piece in alone]


@pytest.mark.parametrize("kind", [Rows, Columns])
def test_a_cache_without_memory_for_another_request_stays_as_it_is(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port("past", np.dtype(np.float32), ("b", 2, "t", 3))
    entries = [Past(port, "present", (1, 2, 0, 3), 0, 2)] * 4
    cache, other, zeros, left = kind(entries), kind(entries, 2), caches._zeros, [2]

    def short(*shape: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("too little memory")
        return zeros(*shape)

    def shapes() -> Any:
        held = cache._blocks if kind is Rows else [past.numpy() for past in cache._pasts]
        return [array.shape for array in held], cache.lengths.tolist()

    before = shapes()
    monkeypatch.setattr(caches, "_zeros", short)
    with pytest.raises(MemoryError):
        cache.join(other)
    assert shapes() == before
