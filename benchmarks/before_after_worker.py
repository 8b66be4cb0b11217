"""Runs the tasks of before_after.py on the checkout in the working directory; `timing.answer_lines` has the protocol.

It uses the public interface alone, and knows both its older and its newer form.
"""

import contextlib
import importlib
import inspect
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import Task, answer_lines

import sae_runtime
from sae_runtime import exports, train

D_IN, D_SAE, BATCH, STEPS = 384, 6_144, 512, 8


def check_checkout() -> None:
    """Refuse an interpreter whose environment holds another checkout."""
    for module in (sae_runtime, train, exports):
        if not Path(str(module.__file__)).resolve().is_relative_to(Path.cwd().resolve()):
            sys.exit(f"{sys.executable} imports {module.__file__}, not {Path.cwd()}; give that checkout's interpreter")


def load(path: Path, graph: str) -> Any:
    """The SAE of a bundle with one of its graphs."""
    settings: dict[str, Any] = {"graph": graph}
    if "precision" in inspect.signature(sae_runtime.load).parameters:
        settings = {"precision": "exact" if graph == "encode_exact.onnx" else "float32"}
    return sae_runtime.load(path, threads=torch.get_num_threads(), **settings)


def splice_task(folder: Path, bundle: Path) -> Task:
    """The splice of a bundle into a small BERT's graph."""
    from transformers import BertConfig, BertModel

    try:
        export_model = importlib.import_module("sae_runtime.exports.export_model").export_model
        splicing = importlib.import_module("sae_runtime.exports.splice.splicing")
    except ModuleNotFoundError:  # the older form
        export_model = importlib.import_module("sae_runtime.exports.host").export_host
        splicing = importlib.import_module("sae_runtime.exports.splice")
    sizes: dict[str, Any] = {"hidden_size": D_IN, "num_hidden_layers": 2, "num_attention_heads": 4}
    model: Any = BertModel(BertConfig(vocab_size=100, intermediate_size=D_IN, **sizes))
    host = export_model(model.eval(), folder / "host.onnx")
    one = splicing.Splice(bundle=bundle, hook="encoder.layer.0")
    return lambda: splicing.splice(host, [one], folder / "spliced", force=True)


def make_tasks(folder: Path) -> dict[str, Task]:
    """What is timed, by name; each call does the same."""
    x = activations(4 * BATCH)
    fits = partial(train.fit, x, folder / "sae", fit_config(), force=True)
    fits()
    exports.export(folder / "sae")
    tasks: dict[str, Task] = {}
    for graph in ("encode.onnx", "encode_exact.onnx"):
        sae = load(folder / "sae", graph)
        for tokens in (1, 16, 1024):
            tasks[f"{graph}, {tokens} tokens"] = partial(sae.encode, x[:tokens])
    edits = [sae_runtime.Edit.set(feature, 3.0) for feature in range(4)]
    tasks["steer 16 tokens, 4 edits"] = partial(sae.steer, x[:16], edits)
    tasks["splice"] = splice_task(folder, folder / "sae")
    fits_again = partial(train.fit, x, folder / "again", fit_config(), force=True)
    tasks[f"fit of {STEPS} steps"] = fits_again
    return tasks


def activations(n: int) -> NDArray[np.float32]:
    """Sums of a few of 1,024 directions with noise."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((1024, D_IN), np.float32) / np.float32(D_IN**0.5)
    x = rng.normal(0, 0.02, (n, D_IN)).astype(np.float32)
    for _ in range(16):
        x += rng.gamma(4, 0.25, (n, 1)).astype(np.float32) * directions[rng.integers(0, 1024, n)]
    return x


def fit_config() -> train.TrainConfig:
    """A short run of mutual choice (BatchTopK)."""
    return train.TrainConfig(k=32, d_sae=D_SAE, tokens=STEPS * BATCH, batch=BATCH, device="cpu")


def main() -> None:
    """Answer until stdin ends."""
    warnings.simplefilter("ignore")
    check_checkout()
    torch.manual_seed(0)
    answers = sys.stdout
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        tasks = make_tasks(Path(folder))
        answer_lines(tasks, answers)


if __name__ == "__main__":
    main()
