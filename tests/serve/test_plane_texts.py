"""Texts of many callers: each answer is that of its text alone, but for the rounding of a batch."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import deploy

from sae_runtime import load_model
from sae_runtime.core.edits import Edit
from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.errors import Invalid, NotFound, TooLarge
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # that the document on serving states


@pytest.fixture(scope="module")
def folder(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("served") / "model", "bert", {"bundle": bundle_of("mutual")})


@pytest.fixture
def plane(folder: Path) -> Iterator[Plane]:
    plane = Plane(open_all([f"bert={folder}"]), limits=Limits(texts=40, characters=20_000))
    yield plane
    plane.close()


def some_texts(number: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(40, size=rng.integers(0, 60))) for _ in range(number)]


def together(ask: Callable[[int], Future[Any]], number: int) -> list[Any]:
    """The answers to requests from eight threads."""
    found: list[Any] = [None] * number

    def call(mine: Sequence[int]) -> None:
        futures = [(one, ask(one)) for one in mine]
        for one, future in futures:
            found[one] = future.result(60)

    callers = [threading.Thread(target=call, args=(range(i, number, 8),)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return found


def test_features_of_texts(plane: Plane, folder: Path) -> None:
    texts, model = some_texts(80), load_model(folder)
    for text, (seen,) in zip(texts, together(lambda i: plane.features("bert", [texts[i]]), 80), strict=True):
        alone = model.features(text)
        assert seen.text == text and seen.ids.tolist() == alone.ids.tolist()
        np.testing.assert_allclose(seen.features.to_dense(), alone.features.to_dense(), **TOLERANCE)


def test_features_as_tensors(plane: Plane, folder: Path) -> None:
    texts, model = [*some_texts(5, seed=3), "", " ".join(["w1"] * 200)], load_model(folder)
    found = plane.infer("bert.features", {"text": np.array([t.encode() for t in texts], object)})
    alone = model.features(texts)
    assert found["row_splits"].tolist() == np.cumsum([0, *map(len, alone)]).tolist()
    assert found["ids"].tolist() == [i for one in alone for i in one.ids.tolist()]
    assert [token.decode() for token in found["tokens"]] == [token for one in alone for token in one.tokens]
    assert found["offsets"].tolist() == [pair for one in alone for pair in one.offsets.tolist()]
    dense = np.zeros((len(found["ids"]), 150), np.float32)
    np.put_along_axis(dense, found["indices"], found["values"], 1)
    expected = np.concatenate([one.features.to_dense() for one in alone])
    rows = np.flatnonzero((found["indices"] == 0).sum(axis=1) < 2)  # unused slots write 0 to feature 0
    np.testing.assert_allclose(dense[rows][:, 1:], expected[rows][:, 1:], **TOLERANCE)
    assert (np.diff(found["values"], axis=1) <= 0).all()


def test_edits_of_one_caller_reach_no_other(plane: Plane, folder: Path) -> None:
    texts, model = some_texts(60, seed=1), load_model(folder)
    edits = [[] if i % 3 else [Edit.set(int(i), 9.0)] for i in range(60)]
    gates: list[Any] = ["all", "text", "last_prompt"]

    def ask(i: int) -> Future[Any]:
        return plane.embed("bert", [texts[i]], {None: edits[i]} if edits[i] else {}, gates[i % 3])

    with pytest.warns(UserWarning):  # the folder does not say how to pool
        alone = [model.embed(texts[i], edits[i], gate=gates[i % 3]) for i in range(60)]
    for (vector,), expected in zip(together(ask, 60), alone, strict=True):
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_outputs_of_the_host(plane: Plane, folder: Path) -> None:
    texts, model = some_texts(6, seed=2), load_model(folder)
    edits = np.array([b'[{"feature": 3, "set": 8.0}]' if i % 2 else b"[]" for i in range(6)], object)
    gate = np.array([b"text", b"[0, 1]", b"all", b"text", b"all", b"all"], object)
    found = plane.infer("bert.run", {"text": np.array(texts, object), "edits": edits, "gate": gate})
    each = model.run(
        texts,
        [[Edit.set(3, 8.0)] if i % 2 else [] for i in range(6)],
        gate=["text", {0, 1}, "all", "text", "all", "all"],
    )
    expected = np.concatenate([one["last_hidden_state"] for one in each])
    np.testing.assert_allclose(found["last_hidden_state"], expected, rtol=1e-4, atol=1e-5)
    assert found["row_splits"].tolist() == np.cumsum([0, *(len(one["last_hidden_state"]) for one in each)]).tolist()


def test_long_text_gives_way(plane: Plane) -> None:
    long = plane.features("bert", [" ".join(["w1"] * 6000)])
    short = [plane.features("bert", ["w2 w3"]) for _ in range(5)]
    for one in short:
        one.result(60)
    assert not long.done()
    assert len(long.result(60)[0]) > 6000


@pytest.mark.parametrize(
    ("operation", "given", "kind"),
    [
        ("features", {"text": [3]}, Invalid),
        ("features", {"text": [b"\xff"]}, Invalid),
        ("features", {"text": [b"w1"] * 41}, TooLarge),
        ("features", {"text": [b"w1 " * 10_000]}, TooLarge),
        ("features", {"text": [b"w1"], "sae": [b"other"]}, Invalid),
        ("run", {"text": [b"w1"], "edits": [b'[{"feature": 150, "set": 1}]']}, Invalid),
        ("run", {"text": [b"w1"], "edits": [b'[{"feature": 1, "set": 1, "sae": "other"}]']}, Invalid),
        ("run", {"text": [b"w1"], "edits": [b"[]", b"[]"]}, Invalid),
        ("run", {"text": [b"w1"], "gate": [b"nowhere"]}, Invalid),
        ("run", {"text": [b"w1"], "gate": [b"[9]"], "edits": [b'[{"feature": 1, "set": 1}]']}, Invalid),
        ("run", {"text": []}, Invalid),
        ("generate", {"text": [b"w1"]}, NotFound),
    ],
)
def test_bad_text_is_one_sentence(plane: Plane, operation: str, given: dict[str, list[Any]], kind: type) -> None:
    with pytest.raises(kind) as caught:
        plane.infer(f"bert.{operation}", {name: np.array(values, object) for name, values in given.items()})
    assert "\n" not in str(caught.value)
    assert plane.admission.waiting == 0
