"""What extraction from text costs, beside a bare loop, and beside SAELens and delphi's cache.

SOURCE is a transformers folder of an encoder with a tokenizer.json, such as all-MiniLM-L6-v2, BUNDLE an exported SAE of
its `encoder.layer.N` that SAELens can load, and TEXT a corpus of benchmarks/corpus.py. Larger SAEs are made with random
directions and the same L0 (made_sae.py). Spliced models are kept in --cache.

- bare: the tokenizer and the session of the same graph over the same parts in the same batches; nothing is read,
  compared or written. "itself" is the bare loop once more: what differs there is noise.
- peers: the same windows of --length tokens to the same features on disk. The peers get the host without the layers
  behind the hook, which they would run otherwise ("whole": they run them, as their users do), and each the batch that
  suits it best. delphi is `eai-delphi`, installed with --no-deps into a folder that PYTHONPATH names.
- memory: the peak of the command `sae-runtime extract` on two sizes of the corpus.

All of a table run in turn on one thread, each turn beginning with another. Times are of the processor, medians over
turns; ratios are medians of those of a turn, with the quartiles in brackets.
"""

import json
import os
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
from extract_peers import Delphi, Host, SAELens, positions, token_ids, versions
from made_sae import made
from numpy.typing import NDArray
from text import deployed, spread

from sae_runtime import Model, load_model
from sae_runtime.activations.documents import Document
from sae_runtime.bundle import folder
from sae_runtime.deployed.batching import batches
from sae_runtime.extraction.extract import extract
from sae_runtime.extraction.text_source import TextSource

CACHE = Path("build/benchmarks/extract")
MEMORY = (500_000, 1_500_000)  # characters; a part has a quarter of a million
SAMPLE = 48  # windows on which thresholds are set
Runs = dict[str, Callable[[], object]]


def models(source: Path, bundle: Path, texts: Sequence[str], sizes: Sequence[int], cache: Path) -> Iterator[Path]:
    """The folder of the spliced model for each number of features; its SAE is in `sae` there."""
    manifest = folder.read(bundle).manifest
    hook, d_in = manifest.hook, manifest.architecture.d_in
    assert hook is not None
    for d_sae in sizes:
        home = cache / f"model-{d_sae}"
        if not home.exists():
            partial = cache / f"partial-{d_sae}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            sae = bundle
            if d_sae != manifest.architecture.d_sae:
                ids = token_ids(source, [text for text in texts if len(text) > 2_000][:SAMPLE], 256)
                with torch.no_grad():
                    x = Host(source, hook)(ids)[0].reshape(-1, d_in).numpy()
                shutil.rmtree(cache / f"sae-{d_sae}", ignore_errors=True)  # a run that was killed left it
                sae = made(cache / f"sae-{d_sae}", bundle, x, d_sae=d_sae)
            deployed(partial, source, sae)
            shutil.copytree(sae, partial / "for-peers")
            partial.rename(home)
        yield home


def parts_of(source: TextSource) -> list[list[Document]]:
    """The documents of each part, read once."""
    return [source.documents.read(part) for part in source.plan().parts]


class Bare:
    """The tokenizer and the session over the parts of a source, in its batches, and nothing around them."""

    def __init__(self, source: TextSource) -> None:
        model = source.model
        self._rust, self._graph = model.tokenizer._rust, model._sessions.open(cut=True)
        self._texts: list[list[str]] = []
        self._batches: list[list[tuple[dict[str, NDArray[Any]]]]] = []
        names = [f"{source.sae.name}_{what}" for what in ("indices", "values", "slots")]
        self._outputs = names[:2]
        self.tokens = 0
        for documents in parts_of(source):
            self._texts.append([str(document.content) for document in documents])
            tokens = source._tokens(documents)
            windows = [window.ids for one in tokens for window in source._windows(one)]
            self.tokens += sum(map(len, windows))
            seen = model.read(windows, texts=range(len(windows)), sae=source.sae.name)
            most = [int(one[source.sae.name].l0().max(initial=0)) for one in seen]
            feeds = []
            for batch in batches(windows, self._graph.inputs, pad=model.tokenizer.pad_id or 0):
                slots = source.sae.slots
                if (
                    max(most[number] for number in batch.texts) > slots
                ):  # such a batch needs more, and gets them at once
                    slots *= 4
                feeds.append((self._graph.inputs.feed(batch.ids, batch.mask) | {names[2]: np.array([slots])},))
            self._batches.append(feeds)

    def __call__(self) -> None:
        """Tokens and features of all parts."""
        for texts, feeds in zip(self._texts, self._batches, strict=True):
            self._rust.encode_batch(texts)
            for (feed,) in feeds:
                self._graph.session.run(self._outputs, feed)


def turns(runs: Runs, count: int) -> dict[str, NDArray[np.float64]]:
    """Processor seconds of each run in each turn; each turn begins with another run."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    for _ in range(count):
        order = order[1:] + order[:1]
        for name, run in order:
            begin = time.process_time()
            run()
            taken[name].append(time.process_time() - begin)
    return {name: np.array(own) for name, own in taken.items()}


def of_characters(texts: Sequence[str], characters: int, path: Path) -> Path:
    """A file of lines of JSON with the first texts of so many characters."""
    with path.open("w") as file:
        for text in texts:
            if characters <= 0:
                break
            file.write(json.dumps({"text": text}) + "\n")
            characters -= len(text)
    return path


def beside_bare(home: Path, text: Path, count: int, work: Path) -> str:
    """A row of the first table."""
    source = TextSource(load_model(home, threads=1), [text])
    bare, out = Bare(source), work / "out"

    def ours() -> None:
        extract(source, out, force=True)

    ours()  # which does not count
    taken = turns({"bare": bare, "ours": ours, "itself": bare}, count)
    made, tokens = extract(source, out), bare.tokens
    stored = sum(path.stat().st_size for path in (out / "tokens").iterdir())
    cells = [f"{source.sae.d_sae:,}", f"{tokens:,}", f"{made.matches / made.rows:.1f}"]
    cells += [f"{tokens / np.median(taken[name]):,.0f}" for name in ("bare", "ours")]
    cells += [spread(taken["bare"] / taken[name]) for name in ("ours", "itself")]
    return " | ".join([*cells, f"{stored / made.matches:.2f}"])


def windows_of_length(model: Model, texts: Sequence[str], length: int, count: int) -> list[str]:
    """Texts that have exactly so many tokens with the special ones: beginnings of those that have more."""
    found = []
    for text in texts:
        (tokens,) = model.tokenizer.encode([text])
        if len(tokens) > length:
            begin = text[: int(tokens.offsets[length - 2, 1])]
            if len(model.tokenizer.encode([begin])[0]) == length:
                found.append(begin)
        if len(found) == count:
            return found
    raise click.ClickException(
        f"the corpus has {len(found)} texts of {length} tokens, expected {count}; make it larger"
    )


def beside_peers(
    home: Path, source: Path, texts: Sequence[str], length: int, count: int, work: Path, batch: int
) -> Iterator[str]:
    """Rows of the second table."""
    file, out = of_characters(texts, sum(map(len, texts)), work / "windows.jsonl"), work / "out"
    ours = TextSource(load_model(home, threads=1), [file], context=length, special=True)
    hook, d_in, sae = ours.sae.hook, ours.sae.spliced.d_in, home / "for-peers"
    matches: dict[str, int] = {}

    def own() -> None:
        matches["ours"] = extract(ours, out, force=True).matches

    def peer(name: str, run: Callable[..., int]) -> Callable[[], None]:
        def call() -> None:
            folder = work / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            matches[name] = run(texts, length, folder, batch=batch)

        return call

    runs: Runs = {"ours": own}
    for whole in (True, False):
        end = "" if whole else ", cut host"
        runs["SAELens" + end] = peer("SAELens" + end, SAELens(source, sae, hook, d_in, whole=whole).run)
        runs["delphi" + end] = peer("delphi" + end, Delphi(source, sae, hook, whole=whole).run)
    for run in runs.values():
        run()  # which does not count
    taken = turns(runs | {"itself": own}, count)
    tokens = length * len(texts)
    agree = agreement(out, work / "SAELens" / "f.safetensors", length, ours.sae.d_sae)
    for name in runs:
        if name != "ours":
            cells = [f"{ours.sae.d_sae:,}", name]
            cells += [f"{tokens / np.median(taken[each]):,.0f}" for each in (name, "ours")]
            cells += [spread(taken[name] / taken["ours"]), spread(taken["itself"] / taken["ours"])]
            yield " | ".join([*cells, f"{matches[name] / matches['ours']:.4f}", f"{agree:.5f}"])


def agreement(out: Path, peers: Path, length: int, d_sae: int) -> float:
    """The share of the matches of either that both have."""
    import pyarrow.parquet
    from safetensors.numpy import load_file

    table = pyarrow.parquet.read_table(out / "tokens", columns=["doc", "indices"])
    lists = table["indices"].combine_chunks()
    counts = np.diff(lists.offsets.to_numpy())
    doc = table["doc"].to_numpy()
    place = np.arange(len(doc)) - np.searchsorted(doc, doc)  # special tokens share the position of their neighbour
    where = np.stack([np.repeat(doc, counts), np.repeat(place, counts), lists.values.to_numpy()], axis=1)
    ours = positions(where, length, d_sae)
    theirs = positions(load_file(peers)["locations"], length, d_sae)
    both = len(np.intersect1d(ours, theirs))
    return both / (len(ours) + len(theirs) - both)


def peak(home: Path, text: Path, out: Path) -> tuple[float, float]:
    """Seconds, and the largest resident size in megabytes, of the command on a corpus."""
    program = "from sae_runtime.cli import main; main()"
    words = ["-c", program, "extract", home, "--text", text, "-o", out, "--quiet", "--json"]
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise click.ClickException(f"extract failed with status {status}")
    return time.perf_counter() - begin, used.ru_maxrss / 1024


def _texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist())
    return [json.loads(line)["text"] for line in path.open()]


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("text", type=click.Path(path_type=Path, exists=True))
@click.option("--part", "parts", multiple=True, type=click.Choice(["bare", "peers", "memory"]), help="[all]")
@click.option("--characters", default=140_000, help="Of the text beside the bare loop; about four are a token.")
@click.option("--windows", default=64, help="Of the text beside the peers; a multiple of --batch.")
@click.option("--length", default=128, help="Tokens of such a window.")
@click.option("--batch", default=16, help="Windows of a batch of the peers.")
@click.option("--count", default=3, help="Turns.")
@click.option("--cache", default=CACHE, type=click.Path(path_type=Path))
def main(
    source: Path,
    bundle: Path,
    text: Path,
    parts: tuple[str, ...],
    characters: int,
    windows: int,
    length: int,
    batch: int,
    count: int,
    cache: Path,
) -> None:
    """Print the tables."""
    warnings.simplefilter("ignore")
    os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers
    torch.set_num_threads(1)
    texts = _texts(text)
    parts = parts or ("bare", "peers", "memory")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if "bare" in parts:
            some = of_characters(texts, characters, work / "some.jsonl")
            print("| features | tokens | L0 | bare, tokens/s | ours | bare : ours | bare : itself | bytes a match |")
            print("|---|---|---|---|---|---|---|---|")
            for home in models(source, bundle, texts, (1_536, 6_144), cache):
                print(f"| {beside_bare(home, some, count, work)} |", flush=True)
        if "memory" in parts:
            print("\n| characters | seconds | peak, MB |\n|---|---|---|")
            (home,) = models(source, bundle, texts, (1_536,), cache)
            for size in MEMORY:
                some = of_characters(texts, size, work / "some.jsonl")
                seconds, most = peak(home, some, work / f"out-{size}")
                print(f"| {size:,} | {seconds:.1f} | {most:,.0f} |", flush=True)
        if "peers" in parts:
            print(f"\n{versions()}\n")
            print("| features | peer | peer, tokens/s | ours | peer : ours | itself : ours | matches | agreement |")
            print("|---|---|---|---|---|---|---|---|")
            chosen: list[str] = []
            for home in models(source, bundle, texts, (1_536, 24_576), cache):
                chosen = chosen or windows_of_length(load_model(home), texts, length, windows)
                for row in beside_peers(home, source, chosen, length, count, work, batch):
                    print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
