"""The one table of the commands that write: what each needs, how it is called, what it makes, and how that is judged.

A new command that writes needs a row in `COMMANDS`, and what it reads a line in `INPUTS`. Faults, kills and full disks
then meet it.
"""

import atexit
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from campaign.server import Ended, Job, Server, shim
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.siblings import repair
from sae_runtime.bundle.stats import counted

_UNFINISHED = ("acts/activations.json", "features/features.json")  # what goes on where it was counts with this file
Tree = dict[str, str]  # paths relative to a folder, with the hash of each file


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command in a folder that holds its inputs.

    Attributes:
        arguments: as one types them, relative to the folder.
        needs: names in `INPUTS`.
        outputs: files and folders that it makes, changes or replaces.
        before: calls that make an older output, which the command replaces.
        once: the command refuses an output that it has finished.
    """

    arguments: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    before: tuple[str, ...] = ()
    once: bool = False


def _model(folder: Path) -> None:
    from tiny_model import save_bert

    save_bert(folder / "model")


def _text(folder: Path) -> None:
    rng = np.random.default_rng(0)
    texts = (" ".join(f"w{i}" for i in rng.integers(40, size=rng.integers(1, 41))) for _ in range(20))
    (folder / "text.txt").write_text("\n\n".join(texts))


def _rows(folder: Path) -> None:
    from conftest import make_x

    np.save(folder / "x.npy", make_x(600))


def _stored(folder: Path) -> None:
    """What a harvest leaves, with tokens."""
    from conftest import D_IN, make_x
    from safetensors.numpy import save_file

    (folder / "stored").mkdir()
    ids = np.arange(600, dtype=np.int32)
    tensors = {"activations": make_x(600), "tokens": 7 * ids, "documents": ids // 50, "positions": ids % 50}
    save_file(tensors, folder / "stored" / "shard-00000.safetensors")
    shards = [{"file": "shard-00000.safetensors", "rows": 600}]
    index = {"format_version": 1, "shards": shards, "d_in": D_IN, "model": None, "hook": "layer.0"}
    (folder / "stored" / "activations.json").write_text(json.dumps(index))


def _bundle(folder: Path, name: str = "sae") -> None:
    from conftest import make_manifest, make_weights, make_x

    stats = counted(np.full(64, 30), np.full(64, 4.0), 300)
    weights, manifest = make_weights(64, "mutual"), make_manifest(64, "mutual")
    bundle.write(folder / name, weights, manifest, sample=make_x(90, seed=8), stats=stats)


def _served(folder: Path) -> None:
    from sae_runtime.exports.export import export

    _bundle(folder, "served")
    export(folder / "served")


def _checkpoint(folder: Path) -> None:
    from conftest import make_weights
    from safetensors.numpy import save_file

    weights = make_weights(64, "token")
    tensors = {"encoder.weight": weights["W_enc"].T.copy(), "encoder.bias": weights["b_enc"]}
    tensors |= {"W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
    (folder / "checkpoint").mkdir()
    save_file(tensors, folder / "checkpoint" / "sae.safetensors")
    cfg = {"activation": "topk", "num_latents": 64, "k": 6, "d_in": 24, "normalize_decoder": True}
    (folder / "checkpoint" / "cfg.json").write_text(json.dumps(cfg))


def _host(folder: Path) -> None:
    from made_hosts import host

    host(folder / "host.onnx", opset=18 - 1, external="host.data")


def _deployed(folder: Path) -> None:
    from word_model import deploy_words

    _bundle(folder, "words-sae")
    deploy_words(folder / "words", folder / "words-sae")


def _some_words(folder: Path) -> None:
    from word_model import some_words

    (folder / "words.txt").write_text("\n\n".join(some_words(30, 20)))


def _labels(folder: Path) -> None:
    (folder / "labels.csv").write_text("feature,label\n3,files\n5,cakes\n")


INPUTS: Mapping[str, Callable[[Path], None] | tuple[tuple[str, ...], tuple[str, ...]]] = {
    "model": _model,
    "text.txt": _text,
    "x.npy": _rows,
    "stored": _stored,
    "sae": _bundle,
    "checkpoint": _checkpoint,
    "served": _served,
    "host.onnx": _host,  # and host.data
    "words": _deployed,
    "words.txt": _some_words,
    "labels.csv": _labels,
    # What other inputs and calls make.
    "features": (("served", "stored"), ("extract served --activations stored -o features -q",)),
    "store": (("features", "served"), ("features build features -o store --sae served -q",)),
    "evaluation.json": (
        ("served", "x.npy"),
        ("evaluate served --activations x.npy --batch 100 -o evaluation.json -q",),
    ),
}
_FIT = (
    "train --activations x.npy --allocation mutual --d-sae 64 --tokens 1k --batch 100 --run-state-seconds 0 -q --resume"
)
COMMANDS: Mapping[str, Command] = {
    "steer": Command(
        arguments="steer served --activations x.npy --set 3=2 --ablate 4 -o steered.npy --force -q",
        needs=("served", "x.npy"),
        outputs=("steered.npy",),
    ),
    "steer, replacing": Command(
        arguments="steer served --activations x.npy --add 3=2 -o steered.safetensors --force -q",
        needs=("served", "x.npy"),
        outputs=("steered.safetensors",),
        before=("steer served --activations x.npy --ablate 5 -o steered.safetensors -q",),
    ),
    "extract": Command(
        arguments="extract served --activations stored -o features -q",
        needs=("served", "stored"),
        outputs=("features",),
    ),
    "extract, replacing": Command(
        arguments="extract served --activations x.npy -o features --force -q",
        needs=("served", "x.npy"),
        outputs=("features",),
        before=("extract served --activations x.npy --values float16 -o features -q",),
    ),
    "extract --text": Command(
        arguments="extract words --text words.txt -o features -q",
        needs=("words", "words.txt"),
        outputs=("features",),
    ),
    "extract --format delphi": Command(
        arguments="extract served --activations stored --format delphi --sequence 50 -o delphi --force -q",
        needs=("served", "stored"),
        outputs=("delphi",),
        before=("extract served --activations stored --format delphi --sequence 20 -o delphi -q",),
    ),
    "features build": Command(
        arguments="features build features -o store --sae served --context 8 --force -q",
        needs=("features", "served"),
        outputs=("store",),
        before=("features build features -o store --bins 5 -q",),
    ),
    "features label": Command(
        arguments="features label served --from labels.csv --replace all",
        needs=("served", "labels.csv"),
        outputs=("served",),
    ),
    "features export": Command(
        arguments="features export store --format neuronpedia --layer 0 --model tiny -o pages --force -q",
        needs=("store",),
        outputs=("pages",),
        before=("features export store --format neuronpedia --layer 1 --model tiny -o pages -q",),
    ),
    "browse": Command(
        arguments="browse store -o site --sae served --force -q",
        needs=("store", "served"),
        outputs=("site",),
        before=("browse store -o site --title older --top 2 -q",),
    ),
    "export": Command(arguments="export sae", needs=("sae",), outputs=("sae",)),
    "export, replacing": Command(
        arguments="export served --graph gpu --activations x.npy", needs=("served", "x.npy"), outputs=("served",)
    ),
    "calibrate": Command(
        arguments="calibrate served --activations x.npy --k 4 -q", needs=("served", "x.npy"), outputs=("served",)
    ),
    "calibrate -o": Command(
        arguments="calibrate served --activations x.npy --k 4 -o other --force -q",
        needs=("served", "x.npy"),
        outputs=("other",),
        before=("calibrate served --activations x.npy --k 9 -o other -q",),
    ),
    "convert": Command(
        arguments="convert checkpoint -o converted --force",
        needs=("checkpoint", "served"),
        outputs=("converted",),
        before=("convert checkpoint -o converted", "export converted"),
    ),
    "evaluate": Command(
        arguments="evaluate served --activations x.npy --batch 100 -o e.json --stats --force -q",
        needs=("served", "x.npy"),
        outputs=("e.json", "served"),
    ),
    "report": Command(
        arguments="report evaluation.json -o report.html --force",
        needs=("evaluation.json",),
        outputs=("report.html",),
    ),
    "splice": Command(
        arguments="splice host.onnx --sae served --hook layer.0 -o out/model.onnx --force",
        needs=("host.onnx", "served"),
        outputs=("out",),
    ),
    "splice, replacing": Command(
        arguments="splice host.onnx --sae served --hook layer.1 -o model.onnx --force",
        needs=("host.onnx", "served"),
        outputs=("model.onnx", "features.onnx"),
        before=("splice host.onnx --sae served --hook layer.0 -o model.onnx --force",),
    ),
    "splice, replacing in a model's folder": Command(
        arguments="splice host.onnx --sae served --hook layer.1 -o out --force",
        needs=("host.onnx", "served"),
        outputs=("out/model.onnx", "out/features.onnx", "out/README.md"),
        before=("splice host.onnx --sae served --hook layer.0 -o out",),
    ),
    "export-triton": Command(
        arguments="export-triton served words -o repository --force",
        needs=("served", "words"),
        outputs=("repository",),
    ),
    "export-triton, replacing": Command(
        arguments="export-triton served --backend onnx -o repository --force",
        needs=("served",),
        outputs=("repository",),
        before=("export-triton served --operation encode -o repository",),
    ),
    "train": Command(arguments=f"{_FIT} --k 4 -o fitted --force", needs=("x.npy",), outputs=("fitted",)),
    "train, several": Command(
        arguments=f"{_FIT} --k 4 --k 6 -o fitted --force --metrics run.jsonl",
        needs=("x.npy",),
        outputs=("fitted",),
        before=(f"{_FIT} --k 8 --k 6 --seed 5 -o fitted",),
    ),
    "harvest": Command(
        arguments="harvest model --hook encoder.layer.0 --text text.txt --context 64 --batch-tokens 256 -o acts -q "
        "--shard-tokens 200",
        needs=("model", "text.txt"),
        outputs=("acts",),
        once=True,
    ),
    "export-model": Command(
        arguments="export-model model -o exported/host.onnx --force", needs=("model",), outputs=("exported",)
    ),
}
MOST_WORKERS = 4


@dataclass(frozen=True)
class Trial:
    """A command under a fault: how it ended, `outcome` (old, new or absent), and what was wrong with it."""

    ended: Ended
    outcome: str
    complaint: str | None


class Bench:
    """Commands with their inputs, the right results, and the warm process that runs them. Use it as a context."""

    def __init__(self, folder: Path, library: Path | None, names: Iterable[str] = COMMANDS) -> None:
        self.folder, self.names = folder, list(names)
        self.server = Server(library)
        self.place = folder / "at"  # every command runs in a folder of one name here: some outputs hold whole paths
        self.place.mkdir(parents=True)
        self._ready: dict[str, tuple[Path, Tree, Tree, Tree, Ended]] = {}
        (folder / "inputs").mkdir()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__()

    def ready(self, name: str) -> Path:
        """The folder of a command before it runs."""
        return self._made_ready(name)[0]

    def usual(self, name: str) -> Ended:
        """How a command ends without a fault: the number of its calls, and its seconds."""
        return self._made_ready(name)[4]

    def attempt(self, name: str, *, again: bool = True, **fault: object) -> Trial:
        """Run a command under a fault of `Job`, look at what it left, and run it `again` without one."""
        ready, old, new, after, _ = self._made_ready(name)
        command = COMMANDS[name]
        folder = Path(shutil.copytree(ready, self.place / "trial"))
        try:
            ended = self.server.run(Job(folder=str(folder), arguments=command.arguments.split(), **fault))  # type: ignore[arg-type]
            outcome, complaint = _state(folder, command.outputs, old, new)
            complaint = complaint or _words(ended, outcome, command.outputs, after)
            if complaint is None and again and not (command.once and outcome == "new"):
                second = self.server.run(Job(folder=str(folder), arguments=command.arguments.split()))
                now, wrong = _state(folder, command.outputs, old, new)
                if second.code != 0:
                    complaint = f"the same command fails afterwards: {second.stderr}"
                elif wrong or now != "new":
                    complaint = f"the same command afterwards leaves what is {wrong or now}"
                elif litter := sorted(set(_tree(folder, ["."], hidden=True)) - set(after)):
                    complaint = f"the next run leaves {litter}"
            return Trial(ended, outcome, complaint)
        finally:
            shutil.rmtree(folder)

    def _made_ready(self, name: str) -> tuple[Path, Tree, Tree, Tree, Ended]:
        """The folder of a command before it runs, its outputs before and after, all files after, and how it ended."""
        if name in self._ready:
            return self._ready[name]
        command = COMMANDS[name]
        ready = self.folder / f"ready-{len(self._ready)}"
        ready.mkdir()
        for need in command.needs:
            self._input(need)
            for path in (self.folder / "inputs").glob(f"{Path(need).stem}.*" if "." in need else need):
                (shutil.copytree if path.is_dir() else shutil.copy)(path, ready / path.name)
        self._call(ready, *command.before)
        old = _tree(ready, command.outputs)
        results = []
        for _ in range(2):  # twice: what differs between two runs cannot be compared; and the second has no imports
            done = Path(shutil.copytree(ready, self.place / "trial"))
            ended = self._call(done, command.arguments)
            results.append((_tree(done, command.outputs), _tree(done, ["."], hidden=True)))
            shutil.rmtree(done)
        (new, after), (other, _) = results
        assert new == other, f"two runs of {name} differ in {[path for path in new if new[path] != other.get(path)]}"
        assert new != old, f"{name} changes nothing"
        self._ready[name] = ready, old, new, after, ended
        return self._ready[name]

    def _input(self, name: str) -> None:
        home = self.folder / "inputs"
        if (home / name).exists():
            return
        made = INPUTS[name]
        if callable(made):
            made(home)
            return
        needs, calls = made
        for need in needs:
            self._input(need)
        self._call(home, *calls)

    def _call(self, folder: Path, *calls: str) -> Ended:
        ended = None
        for call in calls:
            ended = self.server.run(Job(folder=str(folder), arguments=call.split(), learn=True))
            assert ended.code == 0, f"{call}: {ended.stderr}"
        return ended  # type: ignore[return-value]  # only without calls


@functools.cache
def benches(folder: Path, names: tuple[str, ...]) -> list[Bench]:
    """The benches of all parts that try commands, one for each processor: made ready once, and closed at the end.

    Each command belongs to one bench, and runs where its right results were made.
    """
    workers = min(os.cpu_count() or 1, MOST_WORKERS, len(names))
    made = [Bench(folder / f"bench-{i}", shim(), names[i::workers]) for i in range(workers)]
    for bench in made:
        atexit.register(bench.__exit__)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda bench: [bench.usual(name) for name in bench.names], made))
    return made


def _state(folder: Path, outputs: Iterable[str], old: Tree, new: Tree) -> tuple[str, str | None]:
    """Whether the outputs are old, new or absent once their next reader has repaired them; or what they are instead.

    Each output is judged by itself; the word is "new" where all are new.
    """
    words = set()
    for output in outputs:
        path = folder / output
        repair(path)
        if path.is_dir() and (path / bundle.MANIFEST).exists():
            try:
                read = bundle.read(path, calibrated=False)
                for graph in read.manifest.graphs:
                    read.graph(graph)
            except Exception as error:
                return "broken", f"{output} is not whole: {type(error).__name__}: {error}"
        now, before, after = _tree(folder, [output]), _part(old, output), _part(new, output)
        if now == after:
            words.add("new")
        elif now == before or any(index in after and index not in now for index in _UNFINISHED):
            words.add("old" if before else "absent")
        else:
            paths = {**now, **before, **after}
            wrong = [path for path in sorted(paths) if now.get(path) not in (before.get(path), after.get(path))]
            return "broken", f"{output} is neither old nor new: {wrong or 'a mixture of both'}"
    return min(words, key=["absent", "old", "new"].index), None


def _part(tree: Tree, output: str) -> Tree:
    return {path: digest for path, digest in tree.items() if path == output or path.startswith(f"{output}/")}


def _words(ended: Ended, outcome: str, outputs: Iterable[str], after: Tree) -> str | None:
    """What is wrong with what a command said for how it ended."""
    if ended.hung:
        return "it hung"
    if ended.code == -9:
        return None
    if ended.code < 0:
        return f"signal {-ended.code} ended it: {ended.stderr}"
    if ended.code == 0:
        return None if outcome == "new" else f"exit code 0, and the output is {outcome}"
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    printed = ended.stdout and ended.code == 1  # Ctrl-C may come while the result is being printed
    if ended.code not in (1, 130) or len(lines) != 1 or printed:
        return f"exit code {ended.code}, not one line: {ended.stderr}{ended.stdout}"
    if ended.code == 130:
        return None if lines[0].startswith("interrupted") else f"not said to be interrupted: {lines[0]}"
    known = {part for path in (*outputs, *after) for part in Path(path).parts}
    return None if any(name in lines[0] for name in known) else f"no file is named: {lines[0]}"


def _tree(folder: Path, outputs: Iterable[str], *, hidden: bool = False) -> Tree:
    """The files of outputs; hidden ones, which writers leave when they die, only where asked for."""
    found = {}
    for output in outputs:
        for path in [folder / output, *(folder / output).rglob("*")]:
            name = path.relative_to(folder)
            if path.is_file() and (hidden or not any(part.startswith(".") for part in name.parts)):
                found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
