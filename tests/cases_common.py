"""What the cases share: rows with planted directions, truth in float64, tiny models on disk, calls to the product.

A case tells apart what the product says and what is true. The truth here uses numpy or torch alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae_runtime import Activations, open_activations
from sae_runtime.activations.stored import Shard
from sae_runtime.bundle.folder import WEIGHTS
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest

Weights = Mapping[str, NDArray[np.float32]]
Rows = NDArray[np.float32]
Truth = NDArray[np.float64]

D_IN = 32
WORDS = 60
BOS = 2


def planted(n: int, seed: int = 0) -> Rows:
    """Rows [n, D_IN] that are sums of a few of 48 fixed directions, with a little noise."""
    directions = np.random.default_rng(12345).standard_normal((48, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    active = (rng.random((n, 48)) < 0.06) * rng.uniform(1, 2, (n, 48))
    return (active @ directions + 0.02 * rng.standard_normal((n, D_IN))).astype(np.float32)


def with_sinks(x: Rows, ratio: float, seed: int = 3) -> tuple[Rows, NDArray[np.bool_]]:
    """A copy of x in which every 64th row has a norm of `ratio` times the median, and which rows these are."""
    sink = np.zeros(len(x), bool)
    sink[::64] = True
    direction = np.zeros(D_IN)
    direction[[5, 17]] = 1.0, -0.6
    size = ratio * np.median(np.linalg.norm(x, axis=1))
    spread = 1 + 0.02 * np.random.default_rng(seed).standard_normal((sink.sum(), 1))
    y = x.copy()
    y[sink] += (direction * size * spread).astype(np.float32)
    return y, sink


def read_weights(bundle: Path) -> Weights:
    """The tensors of a bundle, as any reader of safetensors gets them."""
    return load_file(str(bundle / WEIGHTS))


def pre_activations(weights: Weights, x: Rows) -> Truth:
    """relu((x - b_dec) W_enc + b_enc) in float64."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    return np.maximum((x.astype(np.float64) - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)


def true_features(weights: Weights, x: Rows, k: int | None = None) -> Truth:
    """What the SAE keeps of its pre-activations [..., d_sae]: those above thresholds, or the k largest of a token."""
    z = pre_activations(weights, x)
    if "threshold" in weights:
        return z * (z > weights["threshold"].astype(np.float64))
    assert k is not None, "an SAE without a threshold needs k"
    largest = np.argsort(-z, axis=-1, kind="stable")[..., :k]
    features = np.zeros_like(z)
    np.put_along_axis(features, largest, np.take_along_axis(z, largest, axis=-1), axis=-1)
    return features


def true_fvu(weights: Weights, x: Rows, features: Truth) -> float:
    """The fraction of the variance of x that the reconstruction from these features leaves unexplained."""
    reconstruction = features @ weights["W_dec"].astype(np.float64) + weights["b_dec"]
    wide = x.astype(np.float64)
    return float(((wide - reconstruction) ** 2).sum() / ((wide - wide.mean(axis=0)) ** 2).sum())


def jaccard(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The share of the matches (positive entries) of either array that both have."""
    return float(((a > 0) & (b > 0)).sum() / max(((a > 0) | (b > 0)).sum(), 1))


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference over the largest expected value."""
    assert got.shape == expected.shape
    return float(np.abs(got.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))


def word_tokenizer(*, bos: bool = False) -> Any:
    """A tokenizer of the words w0 to w59, which puts a BOS token in front if `bos` is set, and else adds nothing."""
    specials = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = {token: i for i, token in enumerate([*specials.values(), *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        special = [("<bos>", BOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=special)
    settings: dict[str, Any] = {**specials, "model_max_length": 512}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)  # type: ignore[no-untyped-call]


def random_texts(lengths: Sequence[int]) -> list[str]:
    """Texts of so many words that `word_tokenizer` knows."""
    return [
        " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, WORDS, size=length))
        for seed, length in enumerate(lengths)
    ]


def write_paragraphs(path: Path, texts: Sequence[str]) -> Path:
    """A text file with a paragraph for each text."""
    path.write_text("\n\n".join(texts))
    return path


def first_tensor(output: Any) -> torch.Tensor:
    """The activation that a module gives: its output, or the first part of it."""
    if isinstance(output, tuple | list):
        output = output[0]
    elif isinstance(output, dict):
        output = next(iter(output.values()))
    assert isinstance(output, torch.Tensor)
    return output


@torch.no_grad()
def hooked(model: Any, hook: str, call: Callable[[], object]) -> list[Rows]:
    """The outputs of a module while `call` runs, one for each time that the module is called, by a torch hook."""
    outputs: list[Rows] = []
    handle = model.get_submodule(hook).register_forward_hook(
        lambda _module, _arguments, output: outputs.append(first_tensor(output).detach().float().numpy().copy())
    )
    try:
        call()
    finally:
        handle.remove()
    return outputs


def documents_of(x: Rows, sizes: Sequence[int]) -> Activations:
    """The first rows of x as documents of these sizes."""
    documents = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    nothing = np.zeros(len(documents), np.int32)
    return Activations(Path("documents"), [Shard(x[: len(documents)], nothing, documents, nothing)])


def fitted(data: Rows | Activations | Path, out: Path, **settings: Any) -> dict[str, float]:
    """Fit an SAE of 96 features on activations, write its bundle, and give what the fit measured."""
    config = TrainConfig(**{"k": 4, "d_sae": 96, "tokens": 200_000, "batch": 500} | settings)
    return dict(fit(data, out, config).measured)


def calibrated(bundle: Path, data: Activations | Path, out: Path, k: float | None = None) -> dict[str, float]:
    """Fit the threshold of a bundle to a mean L0, write the new bundle, and give what the calibration measured."""
    activations = open_activations(data) if isinstance(data, Path) else data
    return dict(calibrate_bundle(bundle, activations, k=k, out=out).measured)


def harvested(model: Path | str, hook: str, text: Path, out: Path, **settings: Any) -> Activations:
    """The activations that the product reads from a text with a model on disk."""
    config = HarvestConfig(model=str(model), hook=hook, text=(text,), **settings)
    return harvest(config, out)


def all_rows(activations: Activations) -> Rows:
    """Every row, in order."""
    return activations.rows(np.arange(len(activations)))
