"""Each line of docs/reference/install.md, installed by pip into a bare environment from a wheel, keeps its promise.

The network is needed: `make extras`, and `make test-full`. Nothing runs from the checkout.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import numpy as np
import pytest
from conftest import make_x

pytestmark = pytest.mark.servers
LINES = environments.lines()
FOR_GPUS = {extras for extras in LINES if "gpu" in extras}
_CONTEXT = ("--context", "32")  # the model reads at most 64 tokens
_SMALL = ("--k", "4", "--d-sae", "32", "--tokens", "1k", "--batch", "100", "--seed", "0")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return environments.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with torch alone, which others are layered over: it is installed once."""
    folder = tmp_path_factory.mktemp("torch") / "env"
    environments.install(environments.environment(folder), "torch")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> dict[str, Path]:
    """What users have: a bundle, activations, a transformers folder, its text, a host's graph, a deployed model."""
    import torch
    from deployed_model import deploy
    from foreign_saes.dictionary_learning import make, save
    from tiny_model import save_bert, write_words

    home = tmp_path_factory.mktemp("made")
    np.save(home / "x.npy", make_x(200))
    torch.manual_seed(0)  # a stranger's checkpoint has random weights
    (home / "words.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i} w{i + 1} w{i + 2}"}) + "\n" for i in range(30))
    )
    (home / "lens").mkdir()  # the files of SAELens alone
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(bundle_of("mutual") / name, home / "lens")
    return {
        "bundle": bundle_of("mutual"),
        "lens": home / "lens",
        "x": home / "x.npy",
        "bert": save_bert(home / "bert"),
        "text": write_words(home / "words.txt", 40),
        "jsonl": home / "words.jsonl",
        "model": deploy(home / "model", "bert", {"bundle": bundle_of("mutual")}),
        "host": deploy(home / "host", "bert", []),
        "torch file": save(make("BatchTopKSAE"), home / "dl", "BatchTopKSAE"),
    }


class Installed:
    """An environment and a folder to work in, which is not the checkout."""

    def __init__(self, python: Path, home: Path, made: dict[str, Path]) -> None:
        self.python, self.home, self.made = python, home, made
        self.env = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.env["HF_HUB_OFFLINE"] = "1"

    def command(self, *arguments: str | Path) -> str:
        """What sae-runtime prints; a path of `made` by its name in braces."""
        words = [self.python.parent / "sae-runtime", *(self.made.get(str(one).strip("{}"), one) for one in arguments)]
        done = subprocess.run(words, cwd=self.home, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *arguments: str | Path) -> str:
        """The one line of an error."""
        words = [self.python.parent / "sae-runtime", *(self.made.get(str(one).strip("{}"), one) for one in arguments)]
        done = subprocess.run(words, cwd=self.home, env=self.env, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done
        return done.stderr

    def run(self, code: str) -> str:
        """What Python prints; MADE has the paths."""
        code = f"MADE = { {name: str(path) for name, path in self.made.items()} }\n{code}"
        done = subprocess.run([self.python, "-c", code], cwd=self.home, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def doctor(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("doctor", "--json"))
        assert found["warnings"] == []
        return found


def alone(it: Installed) -> None:
    it.command("convert", "{lens}", "-o", "converted")
    it.command("inspect", "converted")
    it.command("calibrate", "converted", "--activations", "{x}", "--k", "4")
    assert it.doctor()["providers"] is None
    assert "run: pip install 'sae-runtime[cpu]' (or 'sae-runtime[gpu]' for CUDA)" in it.refused(
        "steer", "{bundle}", "--activations", "{x}", "--set", "3=2.0", "-o", "y.npy"
    )
    assert "pip install 'sae-runtime[cpu,text]'" in it.refused("features", "show", "{model}", "--text", "{text}")
    assert "pip install 'sae-runtime[train]'" in it.refused("train", "--activations", "{x}", *_SMALL, "-o", "s")
    assert "pip install 'sae-runtime[export]'" in it.refused("export", "{bundle}")
    assert "pip install 'sae-runtime[serve]'" in it.refused("serve", "{bundle}")


def arrays(it: Installed) -> None:
    it.run("""
import numpy as np, sae_runtime, sys
sae = sae_runtime.load(MADE["bundle"])
x = np.load(MADE["x"])
features = sae.encode(x)
assert len(features.values) and sae.encode_batch(x).shape == (len(x),)
assert np.isfinite(sae.decode(features)).all()
assert (sae.steer(x, []) == x).all() and (sae.steer(x, [sae_runtime.Edit.set(3, 2.0)]) != x).any()
assert not {"torch", "onnx", "transformers"} & set(sys.modules)
""")
    it.command("steer", "{bundle}", "--activations", "{x}", "--set", "3=2.0", "-o", "y.npy")
    assert it.doctor()["extras"]["cpu"] == []
    assert "run: pip install 'sae-runtime[text]'" in it.refused("features", "show", "{model}", "--text", "{text}")


def texts(it: Installed) -> None:
    it.run("""
import warnings
from sae_runtime import Edit, load_model
warnings.simplefilter("ignore")
model, edit = load_model(MADE["model"]), Edit.set(3, 4.0)
assert len(model.features("w1 w2 w3").features.values)
assert (model.run("w1", edit)["last_hidden_state"] != model.run("w1")["last_hidden_state"]).any()
assert model.embed(["w1", "w2 w3"], edit, gate="text").shape == (2, 24)
""")
    assert "works" in it.command("doctor", "{model}")
    it.command("features", "show", "{model}", "--text", "{text}")


def corpus(it: Installed) -> None:
    it.command("extract", "{model}", "--text", "{jsonl}", "--licence", "CC0-1.0", "-o", "features")
    it.command("features", "build", "features", "-o", "store")
    it.command("features", "search", "store", "w1")
    it.command("browse", "store", "-o", "small")
    assert (it.home / "small" / "index.html").is_file()
    assert "pip install 'sae-runtime[browse]'" in it.refused("browse", "store", "{model}", "-o", "site")


def training(it: Installed) -> None:
    it.command(
        "harvest", "{bert}", "--hook", "encoder.layer.1", "--text", "{text}", *_CONTEXT, "--tokens", "400", "-o", "acts"
    )
    how = ["--k", "4", "--d-sae", "32", "--tokens", "2k", "--batch", "100", "--seed", "0"]
    it.command("train", "--activations", "acts", "--allocation", "mutual", *how, "-o", "sae")
    it.command("evaluate", "sae", "--activations", "acts", "-o", "evaluation.json")
    it.command("convert", "{torch file}", "-o", "converted")
    assert it.doctor()["extras"]["train"] == []
    said = it.refused("export-model", "{bert}", "-o", "host.onnx")
    assert "pip install 'sae-runtime[export]' (or 'sae-runtime[gpu,onnx]' for CUDA)" in said


def graphs(it: Installed) -> None:
    it.command("convert", "{lens}", "-o", "sae")
    it.command("export", "sae")
    it.command(
        "splice", next(it.made["host"].glob("*.onnx")), "--sae", "sae", "--hook", "encoder.layer.0", "-o", "spliced"
    )
    it.command("inspect", "spliced")


def models(it: Installed) -> None:
    it.command("export-model", "{bert}", "-o", "host/model.onnx")
    it.command(
        "train", "--model", "{bert}", "--hook", "encoder.layer.1", "--text", "{text}", *_CONTEXT, *_SMALL, "-o", "sae"
    )
    it.command("export", "sae")
    it.command("splice", "host/model.onnx", "--sae", "sae", "-o", "deployed")
    it.run('import sae_runtime; print(len(sae_runtime.load_model("deployed").features("w1 w2").tokens))')


def serving(it: Installed) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = (f"m={it.made['model']}", f"sae={it.made['bundle']}")
    command: list[str | Path] = [it.python.parent / "sae-runtime", "serve", *named, "--port", str(port)]
    with (it.home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=it.home, env=it.env, stderr=log, stdout=log)
    try:
        assert _answer(server, port, "/v2/health/ready", None) is not None, (it.home / "log").read_text()
        said = _answer(server, port, "/v1/features", {"model": "m", "input": "w1 w2"})
        assert said["data"], said
        assert "sae" in str(_answer(server, port, "/v1/models", None))
    finally:
        server.terminate()
        assert server.wait(30) == 0


def _answer(server: "subprocess.Popen[bytes]", port: int, path: str, body: Any) -> Any:
    """What the server says, once it is up; None where that is nothing."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    for _ in range(600):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:
            time.sleep(0.1)
    return None


def browsing(it: Installed) -> None:
    corpus_of = ["extract", "{model}", "--text", "{jsonl}", "--licence", "CC0-1.0", "-o", "features"]
    it.command(*corpus_of)
    it.command("features", "build", "features", "-o", "store")
    it.command("browse", "store", "{model}", "-o", "site")
    assert list((it.home / "site").rglob("*.onnx"))


def reports(it: Installed) -> None:
    it.command("report", "{evaluation}", "-o", "report.html")
    assert "<svg" in (it.home / "report.html").read_text()


def hub(it: Installed) -> None:
    said = it.refused("inspect", "hf://nobody/nothing")
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in said


def everything(it: Installed) -> None:
    found = it.doctor()["extras"]
    lacking = {name for name, missing in found.items() if missing}
    assert lacking <= {"ray", "neuronpedia", "demo"}
    models(it)


PROMISES: dict[str, Callable[[Installed], None]] = {
    "": alone,
    "cpu": arrays,
    "cpu,text": texts,
    "cpu,text,extract": corpus,
    "train": training,
    "export": graphs,
    "train,export": models,
    "serve": serving,
    "browse": browsing,
    "report": reports,
    "cpu,hub": hub,
    "all": everything,
}


def test_every_line_has_a_promise_that_is_tried() -> None:
    assert set(LINES) - FOR_GPUS == set(PROMISES)


@pytest.mark.parametrize("extras", sorted(PROMISES))
def test_a_line_keeps_its_promise(
    extras: str,
    dist: tuple[Path, Path],
    with_torch: Path,
    made: dict[str, Path],
    tmp_path: Path,
    evaluation: Path,
) -> None:
    layered = {"train", "all"} & set(extras.split(","))
    python = environments.environment(tmp_path / "env", with_torch if layered else None)
    environments.install(python, f"{dist[1]}[{extras}]" if extras else str(dist[1]))
    home = tmp_path / "home"
    home.mkdir()
    PROMISES[extras](Installed(python, home, {**made, "evaluation": evaluation}))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path]) -> Path:
    from command_line import run

    path = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    run("evaluate", made["bundle"], "--activations", made["x"], "-o", path)
    return path


@pytest.mark.parametrize("extras", sorted(FOR_GPUS))
def test_a_line_for_gpus_is_resolved_with_one_onnxruntime(extras: str, dist: tuple[Path, Path], tmp_path: Path) -> None:
    """Gigabytes of CUDA are not installed: pip says what it would."""
    python = environments.environment(tmp_path / "env")
    report = tmp_path / "report.json"
    command: list[str | Path] = [
        *environments.PIP,
        "--python",
        python,
        "install",
        "--dry-run",
        "--report",
        report,
        "--only-binary=:all:",
    ]
    constraints = environments.ROOT / "constraints.txt"
    subprocess.run([*command, "--constraint", constraints, f"{dist[1]}[{extras}]"], check=True, capture_output=True)
    names = {one["metadata"]["name"].lower() for one in json.loads(report.read_text())["install"]}
    assert "onnxruntime-gpu" in names and "onnxruntime" not in names
    assert {"nvidia-cudnn-cu13", "nvidia-cudnn-cu12"} & names
