"""Many callers of a plane: their answers have the bits of each request alone, and nobody holds up the others."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import D_IN, KINDS, make_x
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import from_slots
from sae_runtime.serve import bundle_operations
from sae_runtime.serve.catalogue import Loaded, open_all
from sae_runtime.serve.errors import Closing, Full, Invalid, NotFound, Refused, TimedOut, TooLarge
from sae_runtime.serve.http.protocol import unless_gone
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.live import Live
from sae_runtime.serve.merge_trial import NEVER
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.row_lane import Piece, RowLane, allotted
from sae_runtime.serve.scheduler import Job, Scheduler

Arrays = dict[str, NDArray[Any]]
Ask = tuple[str, Arrays, Arrays]


def same(given: Arrays, expected: Arrays) -> bool:
    return given.keys() == expected.keys() and all(
        given[name].dtype == array.dtype
        and given[name].shape == array.shape
        and given[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def asked(sae: Any, name: str, rng: np.random.Generator) -> Ask:
    """A request of some kind, and its answer alone."""
    kind, rows = rng.integers(5), int(rng.integers(1, 8))
    x = rng.normal(0, 1.2, (rows, D_IN)).astype(np.float32)
    if kind < 2:
        indices, values = sae.encode_slots(x)
        return f"{name}.encode", {"x": x}, {"indices": indices, "values": values}
    if kind == 2:
        by_threshold = sae.manifest.architecture.selection == "threshold"
        options: Any = {"threshold": np.array([0.5], np.float32)} if by_threshold else {"k": np.array([3])}
        indices, values = sae.encode_slots(x, **{key: array[0] for key, array in options.items()})
        return f"{name}.encode", {"x": x, **options}, {"indices": indices, "values": values}
    if kind == 3:
        indices, values = sae.encode_slots(x)
        x_hat = sae.decode(from_slots([(indices, values)], sae.d_sae, (rows,)))
        return f"{name}.decode", {"indices": indices, "values": values}, {"x_hat": x_hat}
    edits = [Edit.set(int(f), float(rng.uniform(1, 9))) for f in rng.permutation(150)[: rng.integers(1, 9)]]
    given = {
        "features": np.array([[edit.feature for edit in edits]]),
        "scale": np.zeros((1, len(edits)), np.float32),
        "shift": np.array([[edit.shift for edit in edits]], np.float32),
    }
    return f"{name}.steer", {"x": x, **given}, {"y": sae.steer(x, edits)}


class Merged(Live):
    """Sees how many requests share a tile, and nothing else."""

    def __init__(self) -> None:
        super().__init__(())
        self.most = 0

    def merged(self, loaded: Loaded, operation: str, *, requests: int, rows: int) -> None:
        self.most = max(self.most, requests)

    def saw(self, *_: object) -> None: ...
    def edited(self, *_: object) -> None: ...
    def answered(self, *_: object, **__: object) -> None: ...


def test_answers_of_many_callers_have_the_bits_of_each_request_alone(bundle_of: Callable[..., Path]) -> None:
    watcher = Merged()
    plane = Plane(open_all([f"{kind}={bundle_of(kind)}" for kind in KINDS]), watcher=watcher)
    rng = np.random.default_rng(0)
    saes = {kind: load(bundle_of(kind)) for kind in KINDS}
    asks = [asked(saes[kind], kind, rng) for kind in KINDS for _ in range(60)]
    order = rng.permutation(len(asks)).tolist()
    wrong: list[str] = []

    def call(mine: Sequence[int]) -> None:
        futures = [(number, plane.submit(asks[number][0], asks[number][1])) for number in mine]
        wrong.extend(asks[number][0] for number, future in futures if not same(future.result(60), asks[number][2]))

    callers = [threading.Thread(target=call, args=(order[i::8],)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    plane.close()
    assert not wrong
    assert watcher.most > 1  # else nothing was merged, and this shows nothing


def test_without_merging_answers_are_the_same(bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_operations, "try_merging", lambda sae: NEVER)
    watcher = Merged()
    plane = Plane(open_all([f"one={bundle_of('mutual')}"]), watcher=watcher)
    sae, rng = load(bundle_of("mutual")), np.random.default_rng(1)
    asks = [asked(sae, "one", rng) for _ in range(60)]
    futures = [plane.submit(name, given) for name, given, _ in asks]
    assert all(same(future.result(60), expected) for future, (_, _, expected) in zip(futures, asks, strict=True))
    plane.close()
    assert watcher.most == 1


@pytest.fixture(scope="module")
def plane(bundle_of: Callable[..., Path]) -> Iterator[Plane]:
    limits = Limits(rows=3000, edits=4, waiting=6, waiting_bytes=1 << 20)
    plane = Plane(open_all([f"one={bundle_of('mutual')}", f"one@2={bundle_of('token')}"]), limits=limits)
    yield plane
    plane.close()


def test_long_requests_are_cut_as_the_library_cuts_them(plane: Plane, bundle_of: Callable[..., Path]) -> None:
    sae, x = load(bundle_of("mutual")), make_x(2600)
    assert len(x) > sae.tile
    indices, values = sae.encode_slots(x)
    answer = plane.infer("one.encode", {"x": x}, version=1)
    assert same(answer, {"indices": indices, "values": values})
    again = plane.infer("one.decode", answer, version=1)
    assert same(again, {"x_hat": sae.decode(from_slots([(indices, values)], sae.d_sae, (len(x),)))})
    edits = np.array([b'[{"feature": 3, "set": 8.0}, {"feature": 5, "scale": 2}]'], object)
    steered = plane.infer("one.steer", {"x": x, "edits": edits}, version=1)
    assert same(steered, {"y": sae.steer(x, [Edit.set(3, 8.0), Edit.scale(5, 2.0)])})
    deep = x.reshape(2, 1300, D_IN)
    lists = np.array([b'[{"feature": 3, "set": 8.0}]', b"[]"], object)
    gate = np.random.default_rng(0).uniform(0, 1, (2, 1300)).astype(np.float32)
    steered = plane.infer("one.steer", {"x": deep, "edits": lists, "gate": gate}, version=1)
    assert same(steered, {"y": sae.steer(deep, [[Edit.set(3, 8.0)], []], gate=gate)})


def test_no_rows_are_answered(plane: Plane) -> None:
    none = np.zeros((0, D_IN), np.float32)
    assert plane.infer("one.encode", {"x": none})["values"].shape == (0, 1)
    assert plane.infer("one.steer", {"x": none})["y"].shape == (0, D_IN)
    assert plane.infer("one.steer", {"x": none[None]})["y"].shape == (1, 0, D_IN)
    slots: dict[str, NDArray[Any]] = {"indices": np.zeros((0, 2), np.int64), "values": np.zeros((0, 2), np.float32)}
    assert plane.infer("one.decode", slots)["x_hat"].shape == (0, D_IN)


def test_version_is_the_highest_unless_it_is_asked(plane: Plane) -> None:
    assert [(line.name, line.version) for line in plane.index()][:1] == [("one.encode", "1")]
    assert {tensor.name for tensor in plane.metadata("one.encode").inputs} == {"x", "k"}
    assert {tensor.name for tensor in plane.metadata("one.encode", "1").inputs} == {"x", "threshold"}
    for name, version in (("two.encode", None), ("one", None), ("one.features", None), ("one.encode", "3"), ("", 1)):
        with pytest.raises(NotFound):
            plane.metadata(name, version)


X = make_x(3)
BAD: dict[str, tuple[str, dict[str, Any], type[Refused]]] = {
    "missing": ("encode", {}, Invalid),
    "unknown": ("encode", {"x": X, "y": X}, Invalid),
    "width": ("encode", {"x": X[:, :5]}, Invalid),
    "rank": ("encode", {"x": X[0]}, Invalid),
    "type": ("encode", {"x": X.astype("U4")}, Invalid),
    "complex": ("encode", {"x": X.astype(np.complex64)}, Invalid),
    "nan": ("encode", {"x": np.where(X > 1, np.nan, X)}, Invalid),
    "too large for float32": ("encode", {"x": X.astype(np.float64) * 1e300}, Invalid),
    "k": ("encode", {"x": X, "k": np.array([151])}, Invalid),
    "k of another type": ("encode", {"x": X, "k": np.array([2.5])}, Invalid),
    "rows": ("encode", {"x": make_x(3001)}, TooLarge),
    "overflow": ("encode", {"x": np.full((1, D_IN), 3e38, np.float32) * np.sign(X[:1])}, Invalid),
    "index": ("decode", {"indices": np.array([[150]]), "values": np.ones((1, 1))}, Invalid),
    "negative value": ("decode", {"indices": np.array([[1]]), "values": -np.ones((1, 1))}, Invalid),
    "shapes": ("decode", {"indices": np.array([[1, 2]]), "values": np.ones((1, 1))}, Invalid),
    "edits twice": ("steer", {"x": X, "features": np.array([[1]]), "edits": np.array([b"[]"], object)}, Invalid),
    "edits without features": ("steer", {"x": X, "scale": np.ones((1, 1))}, Invalid),
    "many edits": ("steer", {"x": X, "features": np.arange(5)[None], "shift": np.ones((1, 5))}, TooLarge),
    "far feature": ("steer", {"x": X, "features": np.array([[150]]), "shift": np.ones((1, 1))}, Invalid),
    "one feature twice": ("steer", {"x": X, "features": np.array([[1, 1]]), "shift": np.ones((1, 1))}, Invalid),
    "no JSON": ("steer", {"x": X, "edits": np.array([b"{"], object)}, Invalid),
    "no UTF-8": ("steer", {"x": X, "edits": np.array([b"\xff"], object)}, Invalid),
    "no bytes": ("steer", {"x": X, "edits": np.array([3], object)}, Invalid),
    "gate": ("steer", {"x": X, "gate": np.ones((1, 2))}, Invalid),
    "gate of nan": ("steer", {"x": X, "gate": np.full(3, np.nan)}, Invalid),
    "label": ("steer", {"x": X, "edits": np.array([b'[{"feature": "a", "ablate": true}]'], object)}, Invalid),
    "density": ("encode_batch", {"x": X, "k": np.array([-1.0])}, Invalid),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request_is_one_sentence(plane: Plane, case: str) -> None:
    operation, given, kind = BAD[case]
    with pytest.raises(kind) as caught:
        plane.infer(f"one.{operation}", given)
    assert "\n" not in str(caught.value)
    assert plane.admission.waiting == 0


def test_error_of_one_request_leaves_those_it_was_merged_with_alone(
    plane: Plane, bundle_of: Callable[..., Path]
) -> None:
    huge = np.full((1, D_IN), 3e38, np.float32)
    for sign in (1, -1):
        futures = [plane.submit("one.encode", {"x": x}) for x in (X, huge * sign, X[:1])]
        outcomes = [future.exception(60) for future in futures]
        assert outcomes[0] is None and outcomes[2] is None
    assert isinstance(outcomes[1], Invalid) or outcomes[1] is None


class Slow:
    """Shares that note what they compute."""

    tile = 10

    def __init__(self) -> None:
        self.ran: list[list[Piece]] = []

    def kind(self, work: Any) -> str:
        return str(work)[:1]

    def costs(self, work: Any) -> int:
        return 1

    def run(self, pieces: Sequence[Piece]) -> Sequence[int]:
        self.ran.append(list(pieces))
        if any(work == "bad" for work, _, _ in pieces):
            raise ValueError("bad")
        return [end - begin for _, begin, end in pieces]

    def whole(self, work: Any, parts: Sequence[int]) -> int:
        return sum(parts)


def job(work: str, rows: int, seconds: float = 60.0) -> Job:
    return Job(work, rows, time.monotonic() + seconds)


def test_long_request_holds_up_short_ones_by_one_tile_and_goes_on_itself() -> None:
    shares = Slow()
    lane = RowLane(shares)
    long, short = job("along", 100), job("ashort", 1)
    lane.put(long)
    lane.tick()
    lane.put(short)
    lane.tick()
    assert short.future.result(0) == 1
    assert shares.ran[1:] == [[("ashort", 0, 1)]]  # does not wait for as many rows as a tile holds a second time
    lane.put(job("a2", 1))
    lane.tick()
    assert shares.ran[2] == [("along", 10, 19), ("a2", 0, 1)]  # the long one goes on, whoever else comes
    while lane.ready():
        lane.put(job("amore", 3)) if len(shares.ran) < 30 else None
        lane.tick()
    assert long.future.result(0) == 100


def test_kinds_take_turns() -> None:
    shares = Slow()
    lane = RowLane(shares)
    jobs = [job("along", 100), job("blong", 100), job("c", 1)]
    for one in jobs:
        lane.put(one)
    for _ in range(6):
        lane.tick()
    assert [pieces[0][0][0] for pieces in shares.ran] == ["a", "b", "c", "a", "b", "a"]


def test_what_fails_together_is_run_one_by_one() -> None:
    lane = RowLane(Slow())
    jobs = [job("b1", 2), job("bad", 2), job("b2", 2)]
    for one in jobs:
        lane.put(one)
    lane.tick()
    assert [one.future.exception(0) is None for one in jobs] == [True, False, True]


def test_who_left_or_waited_too_long_is_dropped() -> None:
    shares = Slow()
    lane = RowLane(shares)
    left, late, stays = job("a1", 2), job("a2", 2, seconds=-1.0), job("a3", 2)
    for one in (left, late, stays):
        lane.put(one)
    left.future.cancel()
    lane.tick()
    assert [work for work, _, _ in shares.ran[0]] == ["a3"]
    with pytest.raises(TimedOut):
        late.future.result(0)
    with pytest.raises(CancelledError):
        left.future.result(0)
    long = job("along", 100)
    lane.put(long)
    lane.tick()
    long.future.cancel()  # while it is answered in part
    lane.tick()
    assert not lane.ready()


def test_every_tile_is_used_and_none_is_too_large() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        wanted: list[Any] = []
        for _ in range(int(rng.integers(1, 12))):
            if rng.integers(2):
                wanted.append((int(rng.integers(0, 9)), int(rng.integers(1, 60))))
            else:
                wanted.append(rng.integers(0, 60, rng.integers(0, 9)).tolist())
        each = [[one[1]] * one[0] if isinstance(one, tuple) else one for one in wanted]
        given = allotted(wanted, 64)
        paid = sum(sum(costs[:units]) for costs, units in zip(each, given, strict=True))
        assert all(0 <= units <= len(costs) for costs, units in zip(each, given, strict=True))
        assert paid <= 64
        left = [costs[units] for costs, units in zip(each, given, strict=True) if units < len(costs)]
        assert not left or 64 - paid < min(left)  # none of those that are left would have fitted
        assert not each[0] or given[0]  # the oldest goes on


def test_full_plane_refuses_and_says_when_to_come_again(plane: Plane) -> None:
    begun, held = threading.Event(), threading.Event()

    class Held:
        def put(self, job: Job) -> None: ...

        def ready(self) -> bool:
            return not held.is_set()

        def tick(self) -> None:
            begun.set()
            held.wait(60)

        def fail(self, error: Exception) -> None: ...

    plane._scheduler.add(Held())
    assert begun.wait(60)  # from here on the thread computes nothing
    futures = [plane.submit("one.encode", {"x": X}) for _ in range(6)]
    with pytest.raises(Full) as caught:
        plane.submit("one.encode", {"x": X})
    assert caught.value.retry_after > 0
    futures[0].cancel()
    futures.append(plane.submit("one.encode", {"x": X}))  # who leaves makes room
    with pytest.raises(TimedOut):
        futures[1].cancel()
        plane.infer("one.encode", {"x": X}, timeout=0.01)
    futures[2].cancel()
    assert plane.admission.waiting == 4
    held.set()
    assert all(future.result(60) for future in futures if not future.cancelled())
    with pytest.raises(TooLarge):
        plane.admission.enter(1 << 21)
    assert plane.admission.waiting == 0


def test_closing_finishes_what_was_accepted_and_takes_nothing_new(bundle_of: Callable[..., Path]) -> None:
    plane = Plane(open_all([f"one={bundle_of('mutual')}"]))
    futures: list[Future[Any]] = [plane.submit("one.encode", {"x": make_x(900, seed=i)}) for i in range(20)]
    futures += [plane.submit("one.encode_batch", {"x": make_x(50, seed=i)}) for i in range(5)]
    plane.close(drain=60)
    assert all(future.result(0) for future in futures)
    assert not plane.ready and {line.state for line in plane.index()} == {"UNAVAILABLE"}
    with pytest.raises(Closing):
        plane.submit("one.encode", {"x": X})


def test_closing_without_time_tells_those_who_wait() -> None:
    scheduler, lane = Scheduler(), RowLane(Slow())
    one = job("a", 2)
    scheduler.close(0.0)
    lane.put(one)
    lane.fail(Closing("the server ends"))
    with pytest.raises(Closing):
        one.future.result(0)


def test_outputs_are_those_that_are_wanted(plane: Plane) -> None:
    assert list(plane.infer("one.encode", {"x": X}, outputs=["values"])) == ["values"]
    with pytest.raises(Invalid, match="no output"):
        plane.infer("one.encode", {"x": X}, outputs=["z"])


def test_batch_rule_is_that_of_the_request_alone(plane: Plane, bundle_of: Callable[..., Path]) -> None:
    sae, parts = load(bundle_of("mutual")), [make_x(20, seed=i) for i in range(5)]
    futures = [plane.submit("one.encode_batch", {"x": x, "k": np.array([2.0])}, version="1") for x in parts]
    for x, future in zip(parts, futures, strict=True):
        alone, answer = sae.encode_batch(x, k=2.0), future.result(60)
        found = from_slots([(answer["indices"], answer["values"])], sae.d_sae, (len(x),))
        assert found.indices.tolist() == alone.indices.tolist()
        assert found.values.tobytes() == alone.values.tobytes()


@pytest.mark.parametrize("spec", ["", "a b=PATH", "one@0=PATH", "one@x=PATH", "one@=PATH", "a.encode=PATH", "one="])
def test_spec_that_names_nothing_is_one_sentence(spec: str, bundle_of: Callable[..., Path]) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        open_all([spec.replace("PATH", str(bundle_of("mutual")))])
    assert "\n" not in str(caught.value)


def test_one_name_and_version_twice_is_refused(bundle_of: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="both one of version 2"):
        open_all([f"one@2={bundle_of('mutual')}", f"one@2={bundle_of('token')}"])


def test_threads_of_what_is_served_sleep(bundle_of: Callable[[str], Path]) -> None:
    (one,) = open_all([f"one={bundle_of('mutual')}"])
    assert one.sae is not None
    session = one.sae._sessions.open("encode.onnx")
    assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    one.close()


def test_one_wake_up_tells_of_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits() -> int:
        loop, futures = asyncio.get_running_loop(), [Future[int]() for _ in range(64)]
        rung, ring = [0], loop.call_soon_threadsafe

        def counted(*given: Any, **named: Any) -> Any:
            rung[0] += 1
            return ring(*given, **named)

        def answer_all() -> None:
            for one in futures:
                one.set_result(1)

        async def never() -> Any:
            await asyncio.sleep(60)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        waiting = [loop.create_task(unless_gone(one, never)) for one in futures]
        await asyncio.sleep(0)
        thread = threading.Thread(target=answer_all)
        thread.start()
        thread.join()  # the loop is busy meanwhile
        assert sum(await asyncio.gather(*waiting)) == 64
        return rung[0]

    assert asyncio.run(waits()) == 1
