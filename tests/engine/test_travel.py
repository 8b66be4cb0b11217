"""An SAE is pickled, copied and forked, and knows its bundle again."""

import copy
import gc
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import K, make_manifest, make_weights, make_x

from sae_runtime import SAE, BundleError, Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import BundleChanged
from sae_runtime.bundle.splices import Spliced
from sae_runtime.bundle.stats import counted
from sae_runtime.core.slots import Slots
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]
Put = Callable[..., Path]
Travel = Callable[[Any], Any]


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture(scope="module")
def put(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Put a bundle at a path, in the place of what is there; seed and slots make another one."""
    made: dict[tuple[int, int], Path] = {}

    def give(path: Path, *, seed: int = 0, slots: int = 4 * K) -> Path:
        if (seed, slots) not in made:
            made[seed, slots] = tmp_path_factory.mktemp("travel") / "sae"
            bundle.write(
                made[seed, slots], make_weights(150, "mutual", seed), make_manifest(150, "mutual", slots=slots)
            )
            export(made[seed, slots])
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(made[seed, slots], path)
        return path

    return give


def same(found: Slots, expected: Slots) -> bool:
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("travel", [pickled, copy.copy, copy.deepcopy])
def test_an_sae_travels_with_its_options_and_equal_bits(bundle_of: BundleOf, kind: str, travel: Travel) -> None:
    options: Any = {"threads": 2, "verify": False, "tiling": Tiling(rows=3), "graph": "encode.onnx"}
    sae, x = load(bundle_of(kind), **options), make_x(8)
    there: SAE = travel(sae)
    assert repr(there) == repr(sae) and there.manifest == sae.manifest
    assert same(there.encode_slots(x), sae.encode_slots(x))
    assert same(there.encode_batch(x).to_slots(), sae.encode_batch(x).to_slots())
    edited = there.steer(x, Edit.set(3, 2.0))
    np.testing.assert_array_equal(edited, sae.steer(x, Edit.set(3, 2.0)))
    assert there._tiler.tiling == Tiling(rows=3) and there._sessions.workers == 2 and not there._sessions._verify
    assert there._sessions.open("encode.onnx").get_session_options().intra_op_num_threads == 2


def test_nothing_is_opened_or_read_until_the_first_use(tmp_path: Path, put: Put) -> None:
    letter = pickle.dumps(load(put(tmp_path / "sae")))
    assert len(letter) < 10_000
    shutil.move(tmp_path / "sae", tmp_path / "elsewhere")
    there: SAE = pickle.loads(letter)
    assert not there._sessions.opened and there.d_sae == 150
    with pytest.raises(BundleError, match="sae does not exist; a bundle is the folder that") as caught:
        there.encode(make_x(2))
    assert "\n" not in str(pickled(caught.value)) == str(caught.value)
    shutil.move(tmp_path / "elsewhere", tmp_path / "sae")
    assert there.encode(make_x(2)).shape == (2,)


CALLS: dict[str, Callable[[SAE], object]] = {
    "encode": lambda sae: sae.encode(make_x(3)),
    "encode_batch": lambda sae: sae.encode_batch(make_x(3)),
    "encode_tensor": lambda sae: sae.encode_tensor(make_x(3)),
    "steer": lambda sae: sae.steer(make_x(3), Edit.ablate(1)),
}


def test_another_bundle_at_the_path_is_refused(tmp_path: Path, put: Put) -> None:
    sae = load(put(tmp_path / "sae"))
    letter = pickle.dumps(sae)
    put(tmp_path / "sae", seed=1)
    sae.close()
    for call in CALLS.values():
        for one in (sae, pickle.loads(letter)):
            with pytest.raises(BundleError, match="sae changed since it was loaded; load it again$"):
                call(one)
    put(tmp_path / "sae")
    for call in CALLS.values():
        assert call(sae) is not None and call(pickle.loads(letter)) is not None


@pytest.mark.parametrize("change", [{"slots": 2 * K}, {"seed": 1}])
def test_a_graph_opened_late_belongs_to_the_bundle_that_was_loaded(
    tmp_path: Path, put: Put, change: dict[str, int]
) -> None:
    sae = load(put(tmp_path / "sae"))
    features = sae.encode(make_x(3))
    put(tmp_path / "sae", **change)
    assert same(sae.encode(make_x(3)).to_slots(), features.to_slots())  # by the graph that is open
    if "seed" in change:
        with pytest.raises(BundleError, match="changed since it was loaded"):
            sae.decode(features)
    else:
        assert sae.decode(features).shape == (3, sae.d_in)  # the weights and decode.onnx are the same


def overwrite(path: Path, other: Path) -> None:
    """Write one bundle over another, file by file, as `cp` does: the files stay the same ones."""
    for file in other.iterdir():
        shutil.copyfile(file, path / file.name)


def fit_again(path: Path, other: Path) -> None:
    """As train --force and export leave a folder."""
    read = bundle.read(other)
    weights = {name: read.tensor(name) for name in read.specs}
    bundle.write(path, weights, read.manifest, force=True)
    export(path)


def exchange(path: Path, other: Path) -> None:
    path.rename(path.with_name("aside"))
    shutil.copytree(other, path)


def save_anew(path: Path, other: Path) -> None:
    """As someone does who changes the weights with the safetensors package."""
    safetensors.numpy.save_file(safetensors.numpy.load_file(other / bundle.WEIGHTS), path / bundle.WEIGHTS)


def write_in_place(path: Path, other: Path) -> None:
    """As someone does who maps the weights and changes them, and sets the times back."""
    times = (path / bundle.WEIGHTS).stat()
    with (path / bundle.WEIGHTS).open("r+b") as file:
        file.write((other / bundle.WEIGHTS).read_bytes())
    os.utime(path / bundle.WEIGHTS, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = (overwrite, fit_again, exchange, save_anew, write_in_place)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_takes_the_place_of_the_files_an_sae_says_so_or_answers_as_before(
    tmp_path: Path, put: Put, change: Callable[[Path, Path], None], verify: bool
) -> None:
    path, other = put(tmp_path / "sae"), put(tmp_path / "other", seed=1)
    for name in ("encode.onnx", "decode.onnx"):
        assert (path / name).read_bytes() == (other / name).read_bytes(), "only the weights tell them apart"
    sae, x = load(path, threads=1, verify=verify), make_x(3)
    opened = load(path, threads=1, verify=verify)
    features = opened.encode(x)
    decoded = opened.decode(features)
    letter = pickle.dumps(sae)
    time.sleep(0.001)
    change(path, other)
    in_place = change in (overwrite, write_in_place)
    late: list[Callable[[], object]] = [lambda: sae.decode(features), lambda: sae._bundle.weights()]
    late += [lambda: sae._bundle.tensor("b_dec"), lambda: sae.steer(x, Edit.ablate(1))]
    late += [lambda: opened.encode(x), lambda: opened.decode(features), lambda: sae.encode(x)] if in_place else []
    late += [lambda: pickle.loads(letter).encode(x)] if change in (overwrite, fit_again, exchange) else []
    for call in late:
        with pytest.raises(BundleChanged, match="sae changed since it was loaded; load it again$"):
            call()
    if not in_place:  # what is open goes on with the old files
        assert same(opened.encode(x).to_slots(), features.to_slots())
        np.testing.assert_array_equal(opened.decode(features), decoded)
    opened.close()
    with pytest.raises(BundleChanged):
        opened.encode(x)
    if change in (overwrite, fit_again, exchange):
        assert same(load(path, threads=1).encode(x).to_slots(), load(other, threads=1).encode(x).to_slots())


def test_an_equal_copy_and_a_touch_change_nothing(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "sae")
    sae, x = load(path), make_x(3)
    features = sae.encode(x)
    for file in path.iterdir():
        os.utime(file)
    decoded = sae.decode(features)
    put(path)
    sae.close()
    np.testing.assert_array_equal(sae.decode(sae.encode(x)), decoded)


def test_calls_leave_no_descriptor_and_no_memory(tmp_path: Path, put: Put) -> None:
    sae, x = load(put(tmp_path / "sae"), threads=1), make_x(1)
    features = sae.encode(x)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        load(tmp_path / "sae", threads=1).decode(features)
        sae._bundle.weights()
        sae.close()
        sae.encode(x)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(sae._bundle.checked) <= 6


def test_the_error_of_a_change_is_pickled_and_knows_its_bundle() -> None:
    error = pickled(BundleChanged(Path("sae")))
    assert (str(error), error.path) == ("sae changed since it was loaded; load it again", Path("sae"))


def test_stats_belong_to_the_bundle_that_was_loaded(tmp_path: Path, put: Put) -> None:
    for seed in (1, 0):
        path = put(tmp_path / str(seed), seed=seed)
        bundle.put_stats(bundle.read(path), counted(np.ones(150, np.int64), np.full(150, seed + 1.0), 10))
    sae = load(tmp_path / "0")
    letter = pickle.dumps(sae)
    shutil.rmtree(tmp_path / "0")
    (tmp_path / "1").rename(tmp_path / "0")
    for one in (sae, pickle.loads(letter)):
        with pytest.raises(BundleError, match="changed since it was loaded; load it again"):
            one.steer(make_x(3), Edit.set(3, times=2))


def test_stats_that_are_measured_again_leave_plain_edits_as_they_are(tmp_path: Path, put: Put) -> None:
    path = put(tmp_path / "sae")
    for value in (1.0, 2.0):
        sae = load(path)
        bundle.put_stats(bundle.read(path), counted(np.ones(150, np.int64), np.full(150, value), 10))
    np.testing.assert_array_equal(sae.steer(make_x(3), Edit.set(3, 8.0)), load(path).steer(make_x(3), Edit.set(3, 8.0)))
    with pytest.raises(BundleError, match="changed since it was loaded; load it again"):
        sae.steer(make_x(3), Edit.set(3, times=2))


def test_graphs_that_are_added_leave_a_loaded_sae_as_it_is(tmp_path: Path, put: Put) -> None:
    sae = load(put(tmp_path / "sae"))
    letter = pickle.dumps(sae)
    export(tmp_path / "sae", graphs=("gpu",))
    for one in (sae, pickle.loads(letter)):
        assert one.decode(one.encode(make_x(3))).shape == make_x(3).shape


def test_spoilt_weights_are_found_on_arrival_if_the_sae_verifies(tmp_path: Path, put: Put) -> None:
    letters = [pickle.dumps(load(put(tmp_path / "sae"), verify=verify)) for verify in (True, False)]
    weights = tmp_path / "sae" / bundle.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match=r"sae_weights.safetensors was altered"):
        pickle.loads(letters[0]).encode(make_x(3))
    assert pickle.loads(letters[1]).encode(make_x(3)).shape == (3,)


def test_a_relative_path_is_that_of_the_folder_in_which_it_was_loaded(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "sae")
    monkeypatch.chdir(tmp_path)
    sae = load("sae")
    letter = pickle.dumps(sae)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert sae.decode(sae.encode(make_x(3))).shape == make_x(3).shape
    assert pickle.loads(letter).encode(make_x(3)).shape == (3,)


def test_a_closed_copy_leaves_the_other_open(bundle_of: BundleOf) -> None:
    sae = load(bundle_of("mutual"))
    there = pickled(sae)
    there.encode(make_x(2))
    there.close()
    assert sae._sessions.opened and not there._sessions.opened and there.encode(make_x(2)).shape == (2,)


def test_what_an_sae_gives_and_takes_is_pickled(bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("feature")), make_x(6)
    features = sae.encode(x)
    for one in (features, features[2:5], features.take([4, 0])):
        found = pickled(one)
        assert same(found.to_slots(), one.to_slots()) and found.shape == one.shape and found.d_sae == 150
    assert same(pickled(sae.encode_slots(x)), sae.encode_slots(x))
    spliced = Spliced(
        name="sae", hook="h", tensor="t", inputs=(), outputs=("o",), replace=False, d_in=2, d_sae=4, weights="0"
    )
    for thing in (Edit.set(3, 2.0), sae.manifest, spliced, Tiling()):
        assert pickled(thing) == thing == copy.deepcopy(thing)
