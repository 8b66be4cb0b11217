"""A machine that runs commands and calls on tiny SAEs in any order, and checks all of them after each step.

Each bundle on the disk opens or is refused with one sentence. Each object that was loaded answers with the weights that
it was loaded from, as numpy computes them, or says that its files changed. A spliced model answers as it was made.
"""

import copy
import dataclasses
import pickle
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from command_line import run as command
from conftest import slots_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from sae_runtime import SAE, BundleError, Edit, load
from sae_runtime.bundle import file_set, quota
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.bundle.plausible import OtherRows
from sae_runtime.engine.sessions import open_session
from sae_runtime.exports import witness
from sae_runtime.exports.export import export

D_IN, D_SAE, K = 8, 32, 3
KINDS = ("token", "mutual", "feature")
NAMES = st.sampled_from(["a", "b"])
DONE: Counter[str] = Counter()  # how often each step was taken, in this process
Arrays = dict[str, NDArray[np.float32]]


@dataclasses.dataclass
class Loaded:
    """An object, where it was loaded from, and what it computes."""

    sae: SAE
    path: Path
    weights: Arrays
    manifest: Manifest


def random_x(seed: int, tokens: int = 12) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1.5, (tokens, D_IN)).astype(np.float32)


def write_bundle(path: Path, kind: str, seed: int) -> None:
    """A bundle with random weights, in place of one that is there."""
    rng = np.random.default_rng(seed)
    decoder = rng.standard_normal((D_SAE, D_IN))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    weights = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": rng.normal(0, 0.1, D_SAE),
        "b_dec": rng.normal(0, 1, D_IN),
    }
    if kind != "token":
        weights["threshold"] = rng.uniform(0.8, 1.6, D_SAE)
    k = K if kind == "token" else None
    form = Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold" if k is None else "topk", k=k)
    law = quota.Quota(exponent=0.5, slack=2.0) if kind == "feature" else None
    manifest = Manifest(architecture=form, allocation=Allocation(kind=kind, k=float(K), quota=law), slots=k or 12)
    made = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    bundles.write(path, made, manifest, sample=random_x(seed, 24), force=True)


def write_host(path: Path) -> None:
    """A host model: ids [b, t] -> a table -> h [b, t, D_IN] -> a matrix -> out."""
    rng, number = np.random.default_rng(1), onnx.TensorProto.FLOAT
    table = rng.normal(0, 1.5, (40, D_IN)).astype(np.float32)
    matrix = rng.standard_normal((D_IN, 5)).astype(np.float32)
    look_up, multiply = (
        onnx.helper.make_node(kind, *names)
        for kind, names in (("Gather", (["table", "input_ids"], ["h"])), ("MatMul", (["h", "w"], ["out"])))
    )
    graph = onnx.helper.make_graph(
        [look_up, multiply],
        "host",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "t"])],
        [onnx.helper.make_tensor_value_info("out", number, ["b", "t", 5])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(matrix, "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)


def one_sentence(error: BaseException) -> bool:
    return 0 < len(str(error)) < 2000 and "\n" not in str(error)


class Machine(RuleBasedStateMachine):
    """Bundles of two names in a folder, objects that were loaded from them, and a spliced model."""

    home = Path(tempfile.gettempdir())

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-", dir=self.home))
        self.loaded: list[Loaded] = []
        self.spliced: tuple[Path, Arrays, Manifest] | None = None
        self.host = self.folder / "host.onnx"
        write_host(self.host)
        np.save(self.folder / "x.npy", random_x(99, 200))

    def teardown(self) -> None:
        for one in self.loaded:
            one.sae.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def exists(self, name: str) -> bool:
        return (self.path(name) / bundles.MANIFEST).exists()

    def ran(self, *arguments: str | Path) -> bool:
        """Run a command: it works, or says in one line why not."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtherRows)  # random SAEs explain nothing
            result = command(*arguments)
        assert result.exit_code in (0, 1), result.output
        if result.exit_code:
            assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
        DONE[f"{arguments[0]}{' refused' if result.exit_code else ''}"] += 1
        return result.exit_code == 0

    @initialize(kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
    def begin(self, kinds: tuple[str, str]) -> None:
        for name, kind in zip("ab", kinds, strict=True):
            self.make_or_replace(name=name, kind=kind, seed=ord(name), exported=name == "a")
        for _ in range(2):
            self.load(name="a", graph=None, verify=True)

    # Steps

    @rule(name=NAMES, kind=st.sampled_from(KINDS), seed=st.integers(0, 5), exported=st.just(True))
    def make_or_replace(self, name: str, kind: str, seed: int, exported: bool) -> None:
        write_bundle(self.path(name), kind, seed)
        DONE["make"] += 1
        if exported:
            assert self.ran("export", self.path(name))

    @rule(name=NAMES, with_sample=st.booleans())
    def export_again(self, name: str, with_sample: bool) -> None:
        sample = ("--activations", self.folder / "x.npy") if with_sample else ()
        self.ran("export", self.path(name), *sample)

    @rule(name=NAMES, k=st.sampled_from([2, 4]), to=st.one_of(st.none(), NAMES))
    def calibrate(self, name: str, k: int, to: str | None) -> None:
        target = () if to is None or to == name else ("-o", self.path(to), "--force")
        self.ran("calibrate", self.path(name), "--activations", self.folder / "x.npy", "--k", str(k), "-q", *target)

    @rule(name=NAMES)
    def evaluate(self, name: str) -> None:
        self.ran("evaluate", self.path(name), "--activations", self.folder / "x.npy", "--stats", "--json")
        self.ran("inspect", self.path(name))

    @rule(name=NAMES, graph=st.sampled_from([None, "encode.onnx"]), verify=st.booleans())
    def load(self, name: str, graph: str | None, verify: bool) -> None:
        try:
            sae = load(self.path(name), graph=graph, threads=1, verify=verify)
        except (BundleError, FileNotFoundError) as error:
            assert one_sentence(error)
            DONE["load refused"] += 1
            return
        read = bundles.read(self.path(name))
        assert read.manifest == sae.manifest
        weights = {key: np.array(array) for key, array in read.weights().items()}
        if sae.manifest.architecture.selection == "threshold":
            weights["threshold"] = np.array(read.tensor("threshold"))
        self.loaded.append(Loaded(sae, self.path(name), weights, sae.manifest))
        DONE["load"] += 1

    @precondition(lambda self: self.loaded)
    @rule(data=st.data(), how=st.sampled_from(["pickle", "copy", "close"]))
    def travel(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from(self.loaded))
        DONE[how] += 1
        if how == "close":
            one.sae.close()
            return
        try:
            sae = pickle.loads(pickle.dumps(one.sae)) if how == "pickle" else copy.deepcopy(one.sae)
        except (BundleError, FileNotFoundError) as error:
            assert one_sentence(error)
            return
        self.loaded.append(dataclasses.replace(one, sae=sae))

    @precondition(lambda self: self.loaded)
    @rule(data=st.data(), seed=st.integers(0, 3), call=st.sampled_from(["encode", "batch", "decode", "steer"]))
    def answer(self, data: st.DataObject, seed: int, call: str) -> None:
        self.check_answer(data.draw(st.sampled_from(self.loaded)), random_x(seed), call)

    @rule(name=NAMES)
    def delete_derived(self, name: str) -> None:
        (self.path(name) / bundles.DERIVED).unlink(missing_ok=True)
        DONE["delete derived"] += 1

    @rule(name=NAMES, to=NAMES)
    def copy_folder(self, name: str, to: str) -> None:
        if name != to and self.exists(name):
            shutil.rmtree(self.path(to), ignore_errors=True)
            shutil.copytree(self.path(name), self.path(to))
            DONE["copy folder"] += 1

    @rule(name=NAMES, seed=st.integers(0, 5))
    def kill_a_writer_before_its_renames(self, name: str, seed: int) -> None:
        """A partial folder without a lock, as a dead writer leaves it."""
        partial = self.folder / f".{name}.{seed:08x}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / "sae_weights.safetensors").write_bytes(b"half")
        DONE["killed writer"] += 1

    @precondition(lambda self: any(self.exists(name) for name in "ab"))
    @rule(name=NAMES, seed=st.integers(0, 5))
    def kill_a_writer_between_its_renames(self, name: str, seed: int) -> None:
        """The old folder stands aside, and nothing has its name."""
        if self.exists(name):
            old = self.folder / f".{name}.{seed:08x}.old"
            shutil.rmtree(old, ignore_errors=True)
            self.path(name).rename(old)
            DONE["killed writer"] += 1

    @rule(name=NAMES)
    def kill_an_export_before_it_moves_its_files(self, name: str) -> None:
        """The files of an export are staged, and a reader moves them."""
        if not self.exists(name):
            return
        with mock.patch.object(file_set, "finish", side_effect=KeyboardInterrupt):
            try:
                export(self.path(name), activations=random_x(7, 40))
            except (KeyboardInterrupt, BundleError):
                DONE["killed export"] += 1

    @rule(name=NAMES, to=NAMES)
    def through_sae_lens(self, name: str, to: str) -> None:
        """A bundle's SAELens files alone, converted back: the same weights, or one line."""
        if name == to or not self.exists(name):
            return
        source = self.folder / "lens"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for file in ("cfg.json", "sae_weights.safetensors"):
            if (self.path(name) / file).exists():
                shutil.copy(self.path(name) / file, source / file)
        if self.ran("convert", source, "-o", self.path(to), "--force"):
            one, other = (bundles.read(self.path(which)).weights() for which in (name, to))
            for key, array in one.items():
                np.testing.assert_allclose(other[key], array, rtol=1e-6, atol=1e-6)

    @rule(name=NAMES, size=st.integers(0, 200))
    def cut_a_file(self, name: str, size: int) -> None:
        if self.exists(name):
            file = self.path(name) / bundles.WEIGHTS
            content = file.read_bytes()
            file.unlink()  # else a file that is mapped would change under those who read it
            file.write_bytes(content[: -1 - size])
            DONE["cut"] += 1

    @rule(name=NAMES)
    def splice(self, name: str) -> None:
        out = self.folder / "spliced" / "model.onnx"
        if self.ran("splice", self.host, "--sae", self.path(name), "--hook", "tensor:h", "-o", out, "--force"):
            read = bundles.read(self.path(name))
            weights = {key: np.array(array) for key, array in read.weights().items()}
            if read.manifest.architecture.selection == "threshold":
                weights["threshold"] = np.array(read.tensor("threshold"))
            self.spliced = out, weights, read.manifest

    # What always holds

    @invariant()
    def bundles_open_or_are_refused(self) -> None:
        for name in "ab":
            try:
                bundles.read(self.path(name))
            except (BundleError, FileNotFoundError) as error:
                assert one_sentence(error), str(error)

    @invariant()
    def objects_answer_as_they_were_loaded(self) -> None:
        """Every second object decodes after each step; the graphs of the others stay closed until a call needs them."""
        for number, one in enumerate(self.loaded[-4:]):
            self.check_answer(one, random_x(11, 5), ("decode", "encode")[number % 2])

    @invariant()
    def nothing_hidden_is_read_as_a_bundle(self) -> None:
        assert {path.name for path in self.folder.iterdir() if not path.name.startswith(".")} <= {
            "a",
            "b",
            "c",
            "host.onnx",
            "x.npy",
            "lens",
            "spliced",
        }

    def check_answer(self, one: Loaded, x: NDArray[np.float32], call: str) -> None:
        """The answer is numpy's, by the weights that were loaded, or a sentence says that the files changed."""
        try:
            self.compare(one, x, call)
        except (BundleError, FileNotFoundError) as error:
            assert one_sentence(error), str(error)
            DONE["changed since loaded"] += 1

    def compare(self, one: Loaded, x: NDArray[np.float32], call: str) -> None:
        weights, form = one.weights, one.manifest.architecture
        z = witness.pre_activations(weights, x)
        expected, lost = witness.served(form, weights, z), witness.rounding(weights, x)
        if call == "batch":
            if (allocation := one.manifest.allocation) is None:
                return
            found = one.sae.encode_batch(x)
            if allocation.kind != "token":
                most = None if allocation.quota is None else bundles_max(one.manifest)
                expected = witness.joint(z, allocation.k, most)
            assert (fault := witness.disagreement(expected, *slots_of(found), lost)) is None, fault
        elif call == "steer":
            edit = {"scale": 0.5, "shift": 1.0, "low": 0.0, "high": 9.0}
            y = one.sae.steer(x, [Edit(3, 0.5, 1.0, 0.0, 9.0)])
            f = np.where(expected.kept, z, 0)[None]
            fault = witness.difference(witness.steer(weights, x[None], f, np.array([[3]]), **edit), y[None])
            assert fault is None, fault
        else:
            found = one.sae.encode(x)
            assert (fault := witness.disagreement(expected, *slots_of(found), lost)) is None, fault
            if call == "decode":
                x_hat = one.sae.decode(found)
                fault = witness.difference(witness.decode(weights, *found.to_slots()), x_hat)
                assert fault is None, fault
        DONE[f"answers by {call}"] += 1

    @invariant()
    def a_spliced_model_answers_as_it_was_made(self) -> None:
        if self.spliced is None:
            return
        path, weights, manifest = self.spliced
        ids = np.arange(10).reshape(2, 5)
        try:
            session = open_session(path, threads=1)
        except BundleError as error:
            raise AssertionError(f"a spliced model does not open: {error}") from error
        slots = np.array([manifest.architecture.k or D_SAE])  # by top k they are k
        indices, values = session.run(["sae_indices", "sae_values"], {"input_ids": ids, "sae_slots": slots})
        x = onnx.numpy_helper.to_array(onnx.load(self.host).graph.initializer[0])[ids.ravel()]
        expected = witness.served(manifest.architecture, weights, witness.pre_activations(weights, x))
        found = indices.reshape(10, -1), values.reshape(10, -1)
        assert (fault := witness.disagreement(expected, *found, witness.rounding(weights, x))) is None, fault
        DONE["answers by a splice"] += 1


def bundles_max(manifest: Manifest) -> NDArray[np.float64]:
    """The largest density of each feature, for feature choice."""
    allocation = manifest.allocation
    assert allocation is not None and allocation.quota is not None
    return quota.max_densities(allocation.quota, allocation.k, D_SAE)


def play(folder: Path, *, examples: int, steps: int, seed: int | None = None) -> None:
    """Play so many games of so many steps; an error names the steps that lead to it."""
    folder.mkdir(parents=True, exist_ok=True)
    game = type("Game", (Machine,), {"home": folder})
    if seed is not None:
        game = seeded(seed)(game)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(game, settings=chosen)


def run(seconds: float, folder: Path, seed: int = 0) -> dict[str, int]:
    """Play games for a time: how many were tried, how many had a fault, and how often each step was taken.

    The steps of each fault are in a file in the folder `faults`.
    """
    DONE.clear()
    end, tried, faults = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            play(folder / "games", examples=3, steps=25, seed=seed + tried)
        except Exception as error:
            faults += 1
            notes = "\n".join(getattr(error, "__notes__", ()))
            (folder / "faults").mkdir(exist_ok=True)
            told = f"{type(error).__name__}: {error}\n{notes}\n"
            (folder / "faults" / f"seed-{seed + tried}.txt").write_text(told)
        tried += 3
    return {"tried": tried, "faults": faults, "steps": sum(DONE.values()), **DONE}
