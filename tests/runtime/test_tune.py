from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_manifest, make_weights, make_x
from numpy.typing import NDArray

from sae_runtime import BundleError, bundle, load, tuned
from sae_runtime import tune as module
from sae_runtime.exports.export import export
from sae_runtime.sessions import Sessions
from sae_runtime.tune import ROWS, relative, timed, tune

BundleOf = Callable[..., Path]
EXACT, PLAIN = "encode_exact.onnx", "encode.onnx"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SAE_RUNTIME_TUNED", str(tmp_path / "tuned.json"))
    return tmp_path / "tuned.json"


class Clock:
    """A clock that stands still but for what is told to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> Clock:
    """Let each call of a graph take so many seconds by a clock, and nothing else any."""
    clock, run = Clock(), Sessions.run

    def slow(self: Sessions, name: str, feed: dict[str, NDArray[Any]], *, shared: bool = False) -> Any:
        clock.now += seconds[name]
        return run(self, name, feed, shared=shared)

    monkeypatch.setattr(Sessions, "run", slow)
    monkeypatch.setattr(module, "_ROUNDS", (2, 2))
    return clock


@pytest.mark.parametrize(("plain", "exact", "quicker"), [(2.0, 3.0, PLAIN), (3.0, 2.0, EXACT), (2.0, 2.0, PLAIN)])
def test_the_quicker_graph_is_loaded(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, plain: float, exact: float, quicker: str
) -> None:
    path = bundle_of("token", 512, sampled=True)
    with monkeypatch.context() as patch:
        clock = slowed(patch, {PLAIN: plain, EXACT: exact})
        found = tune(path, threads=1, clock=clock)
    assert (found.graph, found.threads) == (quicker, 1)
    assert found.seconds == {PLAIN: (plain,) * len(ROWS), EXACT: (exact,) * len(ROWS)}
    assert found.totals[quicker] == len(ROWS)
    sae = load(path, threads=1)
    assert sae._encoder.graph == quicker
    x = make_x(40)
    expected = load(path, precision="float32").encode(x).to_dense()
    np.testing.assert_array_equal(sae.encode(x).to_dense() > 0, expected > 0)


def test_an_answer_is_for_its_number_of_threads(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle_of("token", 512, sampled=True)
    with monkeypatch.context() as patch:
        tune(path, threads=1, clock=slowed(patch, {PLAIN: 3.0, EXACT: 1.0}))
    graphs = [load(path, threads=threads)._encoder.graph for threads in (1, 2)]
    assert graphs == [EXACT, PLAIN]
    assert load(path, precision="float32", threads=1)._encoder.graph == PLAIN


def test_runs_take_turns_on_the_next_tokens() -> None:
    clock, sample = Clock(), make_x(300)
    called: list[tuple[str, int]] = []

    def run(name: str, seconds: float) -> Callable[[NDArray[np.float32]], object]:
        def call(x: NDArray[np.float32]) -> None:
            cold = not called or called[-1][0] != name
            begin = int(np.flatnonzero((sample == x[0]).all(axis=1))[0])
            np.testing.assert_array_equal(x, np.resize(np.roll(sample, -begin, axis=0), x.shape))
            called.append((name, begin))
            clock.now += len(x) * seconds + (1000 if cold else 0)

        return call

    found = timed({"a": run("a", 1.0), "b": run("b", 0.5)}, sample, clock)
    assert found == {"a": tuple(float(n) for n in ROWS), "b": tuple(0.5 * n for n in ROWS)}  # cold calls do not count
    assert called[:8] == [(name, begin) for begin in (0, 1) for name in "aabb"]
    assert len(called) == len(ROWS) * 5 * 4
    assert called[-1] == ("b", 4 * ROWS[-1] % 300)


def test_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), 0

    def run(x: NDArray[np.float32]) -> None:
        nonlocal calls
        calls += 1
        clock.now += 2.0**-6

    timed({"a": run}, make_x(10), clock)
    assert calls == len(ROWS) * 2 * 49  # rounds of 1/32 s until 1.5 s are over
    calls = 0
    monkeypatch.setattr(module, "_SECONDS", float("inf"))
    timed({"a": run}, make_x(10), clock)
    assert calls == len(ROWS) * 2 * 100


def test_a_median_is_not_moved_by_one_slow_call() -> None:
    clock, slow = Clock(), iter([0, 1, 0, 500, 0, 2, 0, 3, 0, 2] * len(ROWS))

    def run(x: NDArray[np.float32]) -> None:
        clock.now += next(slow)

    assert timed({"a": run}, make_x(10), clock) == {"a": (2,) * len(ROWS)}


def test_totals_weigh_every_size_alike() -> None:
    assert relative({"a": (1.0, 8.0), "b": (4.0, 4.0)}) == {"a": 3.0, "b": 5.0}


def test_a_bundle_without_a_choice(bundle_of: BundleOf, tmp_path: Path, place: Path) -> None:
    path = bundle_of("mutual", 150)
    with pytest.raises(ValueError, match=rf"{path} has encode.onnx, expected two .*; run: sae-runtime export {path}"):
        tune(path)
    bundle.write(tmp_path / "sae", make_weights(150, "token"), make_manifest(150, "token"))
    with pytest.raises(ValueError, match="has no exact graph, expected two exact graphs to choose from; run:"):
        tune(tmp_path / "sae")
    with pytest.raises(BundleError, match="does not exist"):
        tune(tmp_path / "nothing")
    assert not place.exists()


def test_a_bundle_without_activations(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "sae"
    bundle.write(path, make_weights(512, "mutual"), make_manifest(512, "mutual"))
    export(path)
    assert EXACT in bundle.read(path).manifest.graphs
    with pytest.raises(ValueError, match=rf"no sample of activations.*; run: sae-runtime export {path} --activations"):
        tune(path)
    assert not place.exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_RUNTIME_TUNED", str(tmp_path / "file" / "tuned.json"))
    monkeypatch.setattr(module, "timed", None)
    with pytest.raises(NotADirectoryError, match=f"{tmp_path / 'file'} is a file"):
        tune(bundle_of("mutual", 512, sampled=True))


def test_no_tuning_is_left_behind(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(module, "timed", broken)
    path = bundle_of("mutual", 512, sampled=True)
    with pytest.raises(MemoryError, match="full"):
        tune(path)
    assert tuned.find(bundle.read(path).manifest, 2) is None
