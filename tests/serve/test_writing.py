"""Answers that a plane writes for several callers, without HTTP."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy

from sae_runtime import Edit, Model, load_model
from sae_runtime.generation.loop import Loop
from sae_runtime.serve.errors import Closing, Full, Invalid, NotFound, TimedOut, TooLarge
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.tensors import as_bytes
from sae_runtime.serve.writing import Written

pytestmark = pytest.mark.usefixtures("one_thread")

STRONG = [Edit.set(3, 60.0), Edit.ablate(7)]
HUGE = [Edit.set(feature, 3e38) for feature in range(60)]
LONG = " ".join(["w1 w2 w3"] * 15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    return deploy(tmp_path_factory.mktemp("writing") / "gpt2", "gpt2", {"bundle": bundle_of("mutual", D_SAE, 4)})


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder, threads=1)


@pytest.fixture
def plane(folder: Path) -> Iterator[Plane]:
    plane = Plane.open([f"writer={folder}"], limits=Limits(answers=3, waiting=30, new_tokens=40, characters=500))
    yield plane
    plane.close(5.0)


def alone(model: Model, prompt: str, edits: Any = (), **settings: Any) -> Written:
    answer = model.generate(prompt, edits, **settings)
    pieces = list(answer)
    assert answer.finished is not None
    return Written(answer.text, answer.ids, [], answer.finished, pieces)


def same(one: Written, other: Written) -> bool:
    return (one.text, one.ids, one.finished) == (other.text, other.ids, other.finished)


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    step = Loop.step

    def slow(self: Loop) -> Any:
        time.sleep(seconds)
        return step(self)

    monkeypatch.setattr(Loop, "step", slow)


def test_more_answers_than_are_written_at_once_wait_for_their_turn(
    plane: Plane, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, running = Loop.step, list[int]()

    def counted(self: Loop) -> Any:
        running.append(len(self))
        return step(self)

    monkeypatch.setattr(Loop, "step", counted)
    asked = [(f"w{number} w2 w{3 * number}", STRONG if number % 2 else [], 3 + number) for number in range(9)]
    futures = [plane.generate("writer", prompt, {None: edits}, max_new_tokens=n) for prompt, edits, n in asked]
    found = [future.result(60) for future in futures]
    assert max(running) == 3
    monkeypatch.undo()
    assert all(
        same(one, alone(model, prompt, edits, max_new_tokens=n))
        for one, (prompt, edits, n) in zip(found, asked, strict=True)
    )


def test_pieces_come_with_the_tokens_that_were_read(plane: Plane, model: Model) -> None:
    seen: list[Any] = []
    future = plane.generate("writer", "w1 w2", max_new_tokens=5, features=True, on_piece=lambda *one: seen.append(one))
    written = future.result(60)
    assert [piece for piece, _ in seen] == written.pieces and written.prompt == [1, 2]
    assert [read for _, read in seen] == [written.prompt, *([number] for number in written.ids[:-1])]
    assert all(len(piece.features["sae"]) == len(read) for piece, read in seen)


def test_generate_by_tensors(plane: Plane, model: Model) -> None:
    edits = json.dumps([{"feature": 3, "set": 60.0}, {"feature": 7, "ablate": True}])
    inputs = {"text": as_bytes(["w1 w2"]), "edits": as_bytes([edits]), "gate": as_bytes(["answer"])}
    found = plane.infer("writer.generate", inputs, parameters={"max_new_tokens": 7, "binary_data_output": True})
    expected = alone(model, "w1 w2", STRONG, gate="answer", max_new_tokens=7)
    assert found["text"].tolist() == [expected.text.encode()] and found["finished"].tolist() == [
        expected.finished.encode()
    ]


def test_an_answer_that_fails_or_is_left_ends_alone(
    plane: Plane, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(*_: Any) -> None:
        raise RuntimeError("nobody listens")

    well = plane.generate("writer", "w1 w2 w3", {None: STRONG}, max_new_tokens=12)
    ill = plane.generate("writer", "w1 w2 w3", {None: HUGE}, gate="generated", max_new_tokens=12)
    deaf = plane.generate("writer", "w5", max_new_tokens=12, on_piece=leave)
    assert same(well.result(60), alone(model, "w1 w2 w3", STRONG, max_new_tokens=12))
    with pytest.raises(Invalid, match="overflow"):
        ill.result(60)
    with pytest.raises(Full, match="could not be answered"):
        deaf.result(60)
    assert "nobody listens" in caplog.text
    assert same(plane.generate("writer", "w9", max_new_tokens=4).result(60), alone(model, "w9", max_new_tokens=4))


def test_a_graph_that_fails_ends_its_answers_and_not_the_next(
    plane: Plane, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(self: Loop) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Loop, "step", failing)
    with pytest.raises(Full, match="could not be answered"):
        plane.generate("writer", "w1").result(60)
    assert "the disk is gone" in caplog.text
    monkeypatch.undo()
    assert same(plane.generate("writer", "w9", max_new_tokens=4).result(60), alone(model, "w9", max_new_tokens=4))


def test_who_leaves_or_is_late_makes_room(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 0.02)
    running = [plane.generate("writer", "w1 w2", max_new_tokens=40) for _ in range(3)]
    late = plane.generate("writer", "w3", max_new_tokens=40, timeout=0.1)
    with pytest.raises(TimedOut):
        late.result(60)
    assert not any(future.done() for future in running), "it waited behind them"
    last = plane.generate("writer", "w4", max_new_tokens=1)
    for future in running:
        assert future.cancel()
    begun = time.monotonic()
    assert len(last.result(60).ids) == 1 and time.monotonic() - begun < 0.5
    assert plane.admission.waiting == 0


def test_answers_and_rows_take_turns(folder: Path, bundle_of: Callable[..., Path]) -> None:
    bundle = bundle_of("mutual", D_SAE, 4)
    plane = Plane.open([f"writer={folder}", f"sae={bundle}"], limits=Limits(new_tokens=40))
    try:
        pieces, rows = list[float](), list[float]()
        future = plane.generate(
            "writer", "w1 w2", max_new_tokens=40, on_piece=lambda *_: pieces.append(time.monotonic())
        )
        x = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)

        def ask() -> None:
            while not future.done():
                plane.infer("sae.encode", {"x": x})
                rows.append(time.monotonic())

        thread = threading.Thread(target=ask)
        thread.start()
        future.result(60)
        thread.join()
        assert len(rows) > 5 and min(rows) < pieces[-1], "rows are encoded between the tokens"
    finally:
        plane.close(1.0)


def test_a_plane_that_closes_finishes_its_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 0.005)
    plane = Plane.open([f"writer={folder}"])
    futures: list[Future[Written]] = [plane.generate("writer", "w1", max_new_tokens=20) for _ in range(4)]
    plane.close(60.0)
    wait(futures, 1)
    assert all(future.result(0).ids for future in futures)
    with pytest.raises(Closing):
        plane.generate("writer", "w1")
    ended = Plane.open([f"writer={folder}"])
    slowed(monkeypatch, 0.05)
    futures = [ended.generate("writer", "w1", max_new_tokens=200)]
    ended.close(0.1)
    with pytest.raises(Closing):
        futures[0].result(1)


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ("w1", {"max_new_tokens": 41}, TooLarge, "at most 40"),
        ("w1", {"max_new_tokens": 0}, Invalid, "from 1 on"),
        ("w1", {"max_new_tokens": True}, Invalid, "from 1 on"),
        ("w1 " * 200, {}, TooLarge, "600 characters"),
        ([{"role": "user", "content": "w1 " * 200}], {}, TooLarge, "600 characters"),
        (LONG + LONG, {}, Invalid, "context holds 64"),
        ("", {}, Invalid, "no tokens"),
        ("w1", {"edits": {None: [Edit.set(150, 1.0)]}}, Invalid, "feature 150"),
        ("w1", {"edits": {"other": STRONG}}, Invalid, "other"),
        ("w1", {"temperature": -1.0}, Invalid, "temperature"),
        ("w1", {"stop": [""]}, Invalid, "stop"),
        ([{"role": "user", "content": "w1"}], {}, Invalid, "chat template"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    plane: Plane, prompt: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plane.generate("writer", prompt, **settings)
    assert plane.admission.waiting == 0
    with pytest.raises(NotFound):
        plane.generate("other", "w1")
