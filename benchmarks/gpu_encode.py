"""Encode on a GPU: encode_gpu.onnx against float64, and against torch's and SAELens's dense encoders in time.

All read tensors on the device and leave their results there. Ours gives exact slots of matches, and encodes again the
rows that it is not certain of. The peers give dense activations of features, or their top k. Without --bundle and
--activations, weights are random and activations sums of a few of their directions with noise.

    python benchmarks/gpu_encode.py                        # some minutes; exit 1 where features disagree
    python benchmarks/gpu_encode.py --device cpu --tiny    # only tries the script out
"""

import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import click
import numpy as np
import torch
from gpu import seconds_of, table
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import load, open_activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import GPU
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.engine.device_tensors import encode_tensor
from sae_runtime.engine.sessions import CPU, CUDA, Provider, Sessions
from sae_runtime.exports import witness
from sae_runtime.exports.export import export
from sae_runtime.train.device import usable_device

Run = Callable[[], object]
OURS, DENSE = "encode_gpu.onnx", "torch, the product alone"


def made_up(path: Path, kind: str, d_in: int, d_sae: int, k: int) -> NDArray[np.float32]:
    """Write a bundle of random directions; give activations [4096, d_in] on which about k of them fire."""
    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((d_sae, d_in)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    chosen, amount = rng.integers(0, d_sae, (4096, k)), rng.gamma(4, 1, (4096, k)).astype(np.float32)
    x = rng.normal(0, 0.02, (4096, d_in)).astype(np.float32)
    for slot in range(k):
        x += amount[:, slot, None] * decoder[chosen[:, slot]]
    weights = {
        "W_enc": np.ascontiguousarray(decoder.T),
        "W_dec": decoder,
        "b_enc": np.zeros(d_sae, np.float32),
        "b_dec": np.zeros(d_in, np.float32),
    }
    if kind == "mutual":
        z = np.maximum(x[:256] @ weights["W_enc"], 0)
        weights["threshold"] = np.full(d_sae, np.partition(z.ravel(), -256 * k)[-256 * k], np.float32)
    architecture = Architecture(
        d_in=d_in,
        d_sae=d_sae,
        selection="topk" if kind == "token" else "threshold",
        k=k if kind == "token" else None,
    )
    slots = k if kind == "token" else min(3 * k, d_sae)
    manifest = Manifest(architecture=architecture, allocation=Allocation(kind=kind, k=float(k)), slots=slots)
    bundle.write(path, weights, manifest, sample=x[:1024])
    return x


def disagreement(read: Bundle, x: NDArray[np.float32], indices: Tensor, values: Tensor) -> str | None:
    """What is wrong with slots of x by float64, but for tokens with more matches than slots."""
    weights = {name: read.tensor(name) for name in read.specs}
    expected = witness.served(read.manifest.architecture, weights, witness.pre_activations(weights, x))
    whole = expected.kept.sum(axis=1) <= read.manifest.slots
    cuts = tuple(cut[whole] if len(cut) == len(whole) else cut for cut in expected.cuts)
    some = witness.Matches(expected.z[whole], expected.kept[whole], cuts)
    return witness.disagreement(some, indices.cpu().numpy()[whole], values.cpu().numpy()[whole])


def contenders(read: Bundle, sessions: Sessions, x: Tensor, *, peers: bool) -> dict[str, Run]:
    """What encodes x; ours first."""
    plain = load(read.path, graph="encode.onnx", providers=providers_of(x.device))
    weights = {name: torch.from_numpy(np.array(read.tensor(name))).to(x.device) for name in read.specs}

    def dense() -> Tensor:
        return torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])

    def selected() -> Tensor | tuple[Tensor, Tensor]:
        z = dense()
        if "threshold" in weights:
            return torch.where(z > weights["threshold"], z, 0)
        top = z.topk(read.manifest.slots)
        return top.values, top.indices

    runs: dict[str, Run] = {
        OURS: partial(encode_tensor, sessions, read.manifest, GPU.file, x),
        "encode.onnx": lambda: plain.encode_tensor(x),
        DENSE: dense,
        "torch, with selection": selected,
    }
    if peers:
        import sae_lens

        theirs = sae_lens.SAE.load_from_disk(read.path, device=str(x.device))
        runs["SAELens"] = lambda: theirs.encode(x)
    return runs


def providers_of(device: torch.device) -> list[Provider]:
    """The onnxruntime provider that computes there."""
    return [(CUDA, {"device_id": str(device.index or 0)}), *CPU] if device.type == "cuda" else list(CPU)


@torch.inference_mode()
def measure(runs: dict[str, Run], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            took = seconds_of(run, device)
            if number > 1:
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}


def encode_all(
    path: Path, x: NDArray[np.float32], tokens: tuple[int, ...], device: torch.device, options: dict[str, int]
) -> bool:
    """Print parity and times of one bundle; whether its features are right."""
    if GPU.file not in bundle.read(path, verify=False).manifest.graphs:
        export(path, graphs=("gpu",))
    read = bundle.read(path)
    sessions = Sessions(read, providers=providers_of(device), threads=None, verify=True)
    part = x[: options["checked"]]
    fault = disagreement(
        read, part, *encode_tensor(sessions, read.manifest, GPU.file, torch.from_numpy(part).to(device))
    )
    certain = sessions.run(GPU.file, {"x": part})[2]
    architecture = read.manifest.architecture
    print(
        f"\n{read.manifest.batch_allocation.kind} choice, d_in {architecture.d_in}, d_sae {architecture.d_sae:,}, ",
        end="",
    )
    print(f"{read.manifest.slots} slots: {len(part)} tokens against float64: {fault or 'ok'}; ", end="")
    print(f"{1 - certain.mean():.2%} encoded again")
    table("tokens", "", "ms", "over ours")
    for n in tokens:
        rows = torch.from_numpy(np.resize(x, (n, x.shape[1]))).to(device)
        median = measure(contenders(read, sessions, rows, peers=bool(options["peers"])), device, options["rounds"])
        for name, seconds in median.items():
            print(f"| {n:,} | {name} | {seconds * 1e3:.3f} | {seconds / median[OURS]:.2f} |", flush=True)
    return fault is None


@click.command()
@click.option("--device", "name", default="cuda", show_default=True)
@click.option("--bundle", "path", type=click.Path(exists=True, file_okay=False, path_type=Path), help="a trained one")
@click.option("--activations", type=click.Path(exists=True, path_type=Path), help="for it")
@click.option("--tokens", default=(1, 64, 1024, 8192), multiple=True, show_default=True)
@click.option("--rounds", default=15, type=click.IntRange(min=1), show_default=True)
@click.option("--peers/--no-peers", default=True)
@click.option("--tiny", is_flag=True, help="sizes that only try the script out")
def main(
    name: str,
    path: Path | None,
    activations: Path | None,
    tokens: tuple[int, ...],
    rounds: int,
    peers: bool,
    tiny: bool,
) -> None:
    """Print markdown tables; exit 1 where features disagree, or where there is no GPU."""
    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("highest")  # no TF32
    if (path is None) != (activations is None):
        raise click.UsageError("--bundle and --activations go together")
    try:
        device = usable_device(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    options = {"checked": 64 if tiny else 1024, "rounds": 2 if tiny else rounds, "peers": int(peers)}
    d_in, d_sae, k = (32, 512, 4) if tiny else (768, 24_576, 32)
    tokens = (1, 64) if tiny else tokens
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    libraries = (f"{library} {metadata.version(library)}" for library in ("torch", "sae-lens"))
    import onnxruntime

    print(f"{what}, CUDA {torch.version.cuda}, {', '.join(libraries)}, onnxruntime {onnxruntime.__version__}")
    try:
        if path is not None and activations is not None:
            rows = open_activations(activations)
            x = rows.rows(np.sort(np.random.default_rng(0).permutation(len(rows))[:8192]))
            right = encode_all(path, x, tokens, device, options)
        else:
            right = True
            with tempfile.TemporaryDirectory() as folder:
                for kind in ("token", "mutual"):
                    x = made_up(Path(folder) / kind, kind, d_in, d_sae, k)
                    right &= encode_all(Path(folder) / kind, x, tokens, device, options)
    except (ValueError, ImportError) as error:  # onnxruntime without CUDA, above all
        raise click.ClickException(str(error)) from error
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
