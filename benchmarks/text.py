"""What text costs a deployed model beyond its graph: one text, 64 texts, beside bare onnxruntime and beside SAELens.

MODEL is a transformers folder of an encoder with a tokenizer.json, such as all-MiniLM-L6-v2, and BUNDLE an exported SAE
of it that SAELens can load. The bare loop is the tokenizer and the session of the same graph, given the same batches
and the slots that it needs. SAELens has torch and the transformers model with a forward hook, in the same batches;
"cut" is the model without the layers behind the hook, which gives features alone. All run in turn on one thread, each
turn begins with another, and "itself" is the bare loop once more: what differs there is noise. Times are of the
processor, medians over turns; ratios are medians of those of a turn, with the quartiles. The last table is of an
environment that has only `sae-runtime[cpu,text]`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime import Edit, Model, load_model
from sae_runtime.core.edits import as_inputs
from sae_runtime.demo.text import paragraphs
from sae_runtime.deployed.batching import Batch, batches
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice

TEXTS = 64
EDIT = Edit.set(12, 8.0)
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "modules.json")

_CHILD = """
import json, sys, time
begin = time.process_time()
from sae_runtime import load_model
imported = time.process_time() - begin
model = load_model(sys.argv[1])
seen = model.features("Open the file")
print(json.dumps([imported, time.process_time() - begin, sorted({"torch", "onnx", "transformers"} & set(sys.modules))]))
"""


def deployed(folder: Path, source: Path, sae: Path) -> Path:
    """The folder of a deployed model."""
    from transformers import AutoModel

    export_model(AutoModel.from_pretrained(source).eval(), folder / "host.onnx")
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return splice(folder / "host.onnx", [Splice(bundle=sae)]).path


class Bare:
    """The tokenizer and the session, with the batches of the runtime and nothing around them."""

    def __init__(self, model: Model, texts: Sequence[str]) -> None:
        self._rust = model.tokenizer._rust
        self._texts, self._model = list(texts), model
        encoded = [one.ids for one in model.tokenizer.encode(self._texts)]
        self._graphs = {cut: model._sessions.open(cut=cut) for cut in (True, False)}
        inputs = self._graphs[False].inputs
        self._batches = list(batches(encoded, inputs, pad=model.tokenizer.pad_id or 0))
        self._seen = model.features(self._texts)
        self._host = list(self._graphs[False].outputs)

    def _run(self, cut: bool, names: Sequence[str], asked: Callable[[Batch], dict[str, NDArray[Any]]]) -> Any:
        if len(self._texts) == 1:
            self._rust.encode(self._texts[0])
        else:
            self._rust.encode_batch(self._texts)
        graph = self._graphs[cut]
        return [
            graph.session.run(list(names), graph.inputs.feed(batch.ids, batch.mask) | asked(batch))
            for batch in self._batches
        ]

    def features(self) -> Any:
        """Indices and values; a batch with a token of more features than usual is run again, as it must be."""
        slots = self._model.saes["sae"].slots

        def asked(batch: Batch) -> dict[str, NDArray[Any]]:
            most = max(int(self._seen[number].features.l0().max()) for number in batch.texts)
            return {"sae_slots": np.array([slots if most <= slots else 4 * slots])}

        return self._run(True, ["sae_indices", "sae_values"], asked)

    def edited(self) -> Any:
        """The host's outputs with an edit."""
        feed = {f"sae_{name}": array for name, array in as_inputs([[EDIT]], self._model.saes["sae"].d_sae).items()}

        def asked(batch: Batch) -> dict[str, NDArray[Any]]:
            return feed | ({"sae_gate": batch.mask[..., None].astype(np.float32)} if batch.is_padded else {})

        return self._run(False, self._host, asked)


class Peer:
    """transformers and SAELens on the same texts, with the batches of the runtime."""

    def __init__(self, source: Path, sae: Path, model: Model, texts: Sequence[str]) -> None:
        from sae_lens import SAE
        from transformers import AutoModel, AutoTokenizer

        self._texts = list(texts)
        self._tokenizer = AutoTokenizer.from_pretrained(source)
        self._whole, self._part = (AutoModel.from_pretrained(source).eval() for _ in range(2))
        hook = model.saes["sae"].hook
        number = int(hook.rpartition(".")[2])
        self._part.encoder.layer = self._part.encoder.layer[: number + 1]
        self._layer = self._whole.get_submodule(hook)
        self._sae = SAE.load_from_disk(sae)
        encoded = [one.ids for one in model.tokenizer.encode(self._texts)]
        inputs = model._sessions.open().inputs
        self._groups = [b.texts for b in batches(encoded, inputs, pad=model.tokenizer.pad_id or 0)]

    def _each(self, model: Any) -> list[Any]:
        with torch.no_grad():
            return [
                model(
                    **self._tokenizer(
                        [self._texts[n] for n in group], padding=True, truncation=True, return_tensors="pt"
                    )
                ).last_hidden_state
                for group in self._groups
            ]

    def features_cut(self) -> Any:
        """Dense features [b, t, d_sae], from the layers up to the hook alone."""
        with torch.no_grad():
            return [self._sae.encode(x) for x in self._each(self._part)]

    def features(self) -> Any:
        """Dense features [b, t, d_sae], by a forward hook in the whole model."""
        dense = []

        def hook(_module: Any, _given: Any, output: Any) -> None:
            dense.append(self._sae.encode(output[0] if isinstance(output, tuple) else output))

        self._hooked(hook)
        return dense

    def edited(self) -> Any:
        """The host's outputs with an edit by a forward hook."""

        def hook(_module: Any, _given: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            change = EDIT.shift - self._sae.encode(x)[..., EDIT.feature, None]
            new = x + change * self._sae.W_dec[EDIT.feature]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return self._hooked(hook)

    def _hooked(self, hook: Callable[..., Any]) -> list[Any]:
        handle = self._layer.register_forward_hook(hook)
        try:
            return self._each(self._whole)
        finally:
            handle.remove()


def of_tokens(model: Model, tokens: int) -> str:
    """A text of so many tokens with the special ones."""
    words = " ".join(paragraphs(seed=1)[:20]).split()
    return next(
        text
        for text in (" ".join(words[: tokens + 2 - n]) for n in range(tokens))
        if len(model.tokenizer.encode([text])[0]) <= tokens
    )


def turns(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of processor time of each run in each turn, in which all run once; at least nine turns.

    Each turn begins with another run, since one finds the caches as the run before it left them.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + seconds
    for run in runs.values():
        run()
    order = list(runs.items())
    while time.monotonic() < end or len(taken["bare"]) < 9:
        order = order[1:] + order[:1]
        for name, run in order:
            begin = time.process_time()
            run()
            taken[name].append(1e3 * (time.process_time() - begin))
    return {name: np.array(own) for name, own in taken.items()}


def compare(model: Model, source: Path, sae: Path, texts: list[str], seconds: float) -> Iterator[tuple[str, Any]]:
    """The turns of features and of an edit."""
    bare, peer = Bare(model, texts), Peer(source, sae, model, texts)
    given: Any = texts[0] if len(texts) == 1 else texts
    ours: dict[str, Callable[[], object]] = {
        "features": lambda: model.features(given),
        "edited": lambda: model.run(given, EDIT),
    }
    for what, run in ours.items():
        alone = getattr(bare, what)
        theirs = {"whole": peer.features, "cut": peer.features_cut} if what == "features" else {"whole": peer.edited}
        yield what, turns({"bare": alone, "ours": run, "itself": alone, **theirs}, seconds)


def lone_environment(home: Path, graph: Path) -> dict[str, Any]:
    """Import seconds and megabytes of an environment with only `sae-runtime[cpu,text]`, from a built wheel."""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, root], check=True)
    (wheel,) = home.glob("sae_runtime-*.whl")
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    python = home / "env" / "bin" / "python"
    site = next((home / "env" / "lib").glob("python*/site-packages"))
    before = _megabytes(site)
    subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[cpu,text]"], check=True)
    said = [
        json.loads(subprocess.run([python, "-c", _CHILD, graph], check=True, capture_output=True, text=True).stdout)
        for _ in range(7)
    ]
    imported, first = (float(np.median([one[at] for one in said])) for at in (0, 1))
    return {"import": imported, "first": first, "loaded": said[0][2], "megabytes": _megabytes(site) - before}


def spread(ratios: NDArray[np.float64]) -> str:
    """The median and the quartiles."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("sae", type=click.Path(path_type=Path, exists=True))
@click.option("--seconds", default=20.0, help="For each line.")
@click.option("--environment/--no-environment", default=True, help="Build an environment of [cpu,text] alone.")
def main(source: Path, sae: Path, seconds: float, environment: bool) -> None:
    """Print two tables."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        graph = deployed(home / "model", source, sae)
        model = load_model(graph, threads=1)
        rng, listed = np.random.default_rng(0), paragraphs(seed=0)
        many = [listed[n] for n in rng.choice(len(listed), TEXTS, replace=False)]
        cases = {f"1 text of {n} tokens": [of_tokens(model, n)] for n in (16, 128)} | {f"{TEXTS} texts": many}
        print(
            "| | bare, ms | ours less bare, ms | bare : ours | bare : itself | SAELens : ours | SAELens, cut : ours |"
        )
        print("|---|---|---|---|---|---|---|")
        for case, texts in cases.items():
            for what, taken in compare(model, source, sae, texts, seconds):
                bare, ours, itself = (taken[name] for name in ("bare", "ours", "itself"))
                more = f"{np.median(ours - bare):+.2f} ({np.median(itself - bare):+.2f})"
                ratios = [spread(bare / ours), spread(bare / itself), spread(taken["whole"] / ours)]
                ratios.append(spread(taken["cut"] / ours) if "cut" in taken else "")
                print(f"| {case}, {what} | {np.median(bare):.2f} | {more} | {' | '.join(ratios)} |", flush=True)
        if environment:
            found = lone_environment(home, graph)
            print("\n| [cpu,text] alone | |\n|---|---|")
            print(f"| import, s of processor time | {found['import']:.2f} |")
            print(f"| until the first text's features, s | {found['first']:.2f} |")
            print(f"| of torch, onnx, transformers imported | {', '.join(found['loaded']) or 'none'} |")
            print(f"| installed, MB | {found['megabytes']:.0f} |")


if __name__ == "__main__":
    main()
