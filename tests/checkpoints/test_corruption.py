"""Damaged checkpoints are refused, or become what their own library computes from the same damaged files.

`CORRUPTIONS=1000 pytest tests/checkpoints/test_corruption.py` tries a thousand of each;
docs/results/damaged_files.md has what came of it.
"""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign_saes.batch_topk
import foreign_saes.dictionary_learning
import foreign_saes.gemma_scope
import foreign_saes.llama_scope
import foreign_saes.openai
import foreign_saes.released
import foreign_saes.sae_lens
import foreign_saes.sparsify
import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import KINDS, make_x
from corruption import EACH, deadline, spoil
from foreign import activations, assert_near
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import BundleError
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import witness

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'utils' module has been deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
D_IN, ROWS = 16, 7
Computed = tuple[NDArray[Any], NDArray[Any]]
Library = Callable[[Tensor], tuple[Tensor, Tensor]]
GOOD = ("refused", "alike", "ours alone")
GEMMA, GEMMA_2 = "layer_3/width_16k/average_l0_50", "resid_post/layer_3_width_16k_l0_small"


@dataclass(frozen=True)
class Foreign:
    """A checkpoint as its library saves it below a folder, and the library's features and reconstructions of it."""

    save: Callable[[Path], object]
    library: Callable[[Path, pytest.MonkeyPatch], Library]
    path: str = "."  # the path to convert, relative to the folder


def sae_lens(name: str) -> Foreign:
    _, kind, settings = foreign_saes.sae_lens.CASES[name]

    def library(folder: Path, _: pytest.MonkeyPatch) -> Library:
        from sae_lens import SAE

        sae = SAE.load_from_disk(folder).to(dtype=torch.float64)
        return lambda x: (sae.encode(x), sae(x))

    return Foreign(lambda folder: foreign_saes.sae_lens.make(kind, **settings).save_model(folder), library)


def sparsify(name: str) -> Foreign:
    _, settings = foreign_saes.sparsify.CASES[name]

    def library(folder: Path, _: pytest.MonkeyPatch) -> Library:
        from sparsify import SparseCoder

        coder = SparseCoder.load_from_disk(folder).double()

        def forward(x: Tensor) -> tuple[Tensor, Tensor]:
            values, indices, _ = coder.encode(x)
            return x.new_zeros(len(x), coder.num_latents).scatter(1, indices, values), coder(x).sae_out

        return forward

    return Foreign(lambda folder: foreign_saes.sparsify.make(**settings).save_to_disk(folder), library)


def dictionary_learning(kind: str) -> Foreign:
    def save(folder: Path) -> None:
        foreign_saes.dictionary_learning.save(foreign_saes.dictionary_learning.make(kind), folder, kind, steps=100_000)
        if "TopK" in kind:
            cfg = json.loads((folder / "config.json").read_text())
            cfg["trainer"]["k"] = foreign_saes.dictionary_learning.K
            (folder / "config.json").write_text(json.dumps(cfg))

    def library(folder: Path, _: pytest.MonkeyPatch) -> Library:
        # As its load_dictionary does, which cannot be imported without nnsight.
        trainer = json.loads((folder / "config.json").read_text())["trainer"]
        cls: Any = type(foreign_saes.dictionary_learning.make(trainer["dict_class"]))
        settings = {"k": trainer["k"]} if "TopK" in trainer["dict_class"] else {}
        torch.set_default_dtype(torch.float64)  # AutoEncoder tests itself when it is opened, on random activations
        try:
            module = cls.from_pretrained(folder / "ae.pt", **settings)
        finally:
            torch.set_default_dtype(torch.float32)
        return lambda x: (module.encode(x), module(x))

    return Foreign(save, library)


def openai(k: int | None) -> Foreign:
    def library(folder: Path, _: pytest.MonkeyPatch) -> Library:
        state = doubled(torch.load(folder / "autoencoder.pt", weights_only=True))
        return lambda x: foreign_saes.openai.forward(state, x)

    return Foreign(
        lambda folder: torch.save(foreign_saes.openai.state(k), folder / "autoencoder.pt"), library, "autoencoder.pt"
    )


def batch_topk(kind: str) -> Foreign:
    def library(folder: Path, _: pytest.MonkeyPatch) -> Library:
        state = doubled(torch.load(folder / "sae.pt", weights_only=True))
        cfg = json.loads((folder / "config.json").read_bytes())
        return lambda x: foreign_saes.batch_topk.forward(state, cfg, x)

    def save(folder: Path) -> None:
        folder.rmdir()
        foreign_saes.batch_topk.save(folder, sae_type=kind)

    return Foreign(save, library)


def gemma_scope() -> Foreign:
    def save(folder: Path) -> None:
        (folder / GEMMA).mkdir(parents=True)
        np.savez(folder / GEMMA / "params.npz", **foreign_saes.gemma_scope.arrays())

    def library(folder: Path, patch: pytest.MonkeyPatch) -> Library:
        loader, repo = "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res"
        sae = foreign_saes.gemma_scope.sae_lens_sae(
            patch, folder, loader, repo, GEMMA, **foreign_saes.gemma_scope.SIZES
        )
        sae = sae.to(dtype=torch.float64)
        return lambda x: (sae.encode(x), sae(x))

    return Foreign(save, library, GEMMA)


def gemma_scope_2() -> Foreign:
    def save(folder: Path) -> None:
        tensors = {name.replace("W_", "w_"): array for name, array in foreign_saes.gemma_scope.arrays().items()}
        cfg = {"architecture": "jump_relu", "model_name": "gemma", "hf_hook_point_in": "model.layers.3.output"}
        (folder / GEMMA_2).mkdir(parents=True)
        safetensors.numpy.save_file(tensors, folder / GEMMA_2 / "params.safetensors")
        (folder / GEMMA_2 / "config.json").write_text(json.dumps(cfg))

    def library(folder: Path, patch: pytest.MonkeyPatch) -> Library:
        loader, repo = "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-1b-pt"
        sae = foreign_saes.gemma_scope.sae_lens_sae(patch, folder, loader, repo, GEMMA_2).to(dtype=torch.float64)
        return lambda x: (sae.encode(x), sae(x))

    return Foreign(save, library, GEMMA_2)


def llama_scope() -> Foreign:
    def library(folder: Path, patch: pytest.MonkeyPatch) -> Library:
        loader = "llama_scope_sae_huggingface_loader"
        sae = foreign_saes.llama_scope.sae_lens_sae(patch, folder / "L3R-8x", loader).to(dtype=torch.float64)
        # SAELens keeps a list of the averages of published SAEs; this one is not in it.
        damage = json.loads((folder / "L3R-8x" / "hyperparams.json").read_bytes())[foreign_saes.llama_scope.NORM]
        sae.fold_activation_norm_scaling_factor(foreign_saes.llama_scope.AVERAGE / damage["in"])
        return lambda x: (sae.encode(x), sae(x) * (damage["out"] / damage["in"]))

    return Foreign(
        lambda folder: foreign_saes.llama_scope.save_first(
            folder / "L3R-8x", foreign_saes.llama_scope.weights(unit=True)
        ),
        library,
        "L3R-8x",
    )


def released(name: str) -> Foreign:
    release = foreign_saes.released.RELEASES[name]
    home = release.repository.split("/")[1]

    def library(folder: Path, patch: pytest.MonkeyPatch) -> Library:
        sae = foreign_saes.gemma_scope.sae_lens_sae(
            patch, folder / home, release.loader, release.repository, release.name, **release.settings
        )
        sae = sae.to(dtype=torch.float64)
        return lambda x: (sae.encode(x), sae(x))

    return Foreign(release.save, library, f"{home}/{release.name}")


FOREIGN: dict[str, Foreign] = {
    **{f"SAELens {name}": sae_lens(name) for name in ("topk", "jumprelu", "gated", "skip transcoder")},
    **{
        f"dictionary_learning {kind}": dictionary_learning(kind)
        for kind in ("AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    },
    **{f"sparsify {name}": sparsify(name) for name in ("topk", "groupmax skip transcoder")},
    "OpenAI": openai(5),
    "Gemma Scope": gemma_scope(),
    "Gemma Scope 2": gemma_scope_2(),
    "Llama Scope": llama_scope(),
    **{f"BatchTopK {kind}": batch_topk(kind) for kind in ("topk", "jumprelu")},
    **{name: released(name) for name in foreign_saes.released.RELEASES},
}


def doubled(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.double() if isinstance(value, Tensor) else value for key, value in state.items()}


def computed(path: Path, x: NDArray[np.float64]) -> Computed:
    """Features and reconstructions of a bundle by plain numpy; without a threshold, all positive z are kept."""
    read = bundle.read(path, calibrated=False)
    weights, architecture = read.weights(), read.manifest.architecture
    z = witness.pre_activations(weights, witness.normalise(x, architecture.norm)[0])
    if architecture.selection == "threshold":
        matches = witness.threshold(z, weights.get("threshold", np.zeros(1)))
    else:
        choose = witness.token_choice if architecture.selection == "topk" else witness.group_choice
        matches = choose(z, architecture.k or 0)
    f = np.where(matches.kept, z, 0)
    y = f @ weights["W_dec"].astype(np.float64) + weights["b_dec"]
    return f, witness.completed(weights, y, x, architecture.norm)


def library_result(library: Callable[[], Library], x: Tensor) -> Computed | None:
    """Features and reconstructions by the library; None if it fails."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            f, y = library()(x)
        except Exception:  # each library fails in its own ways
            return None
    return f.numpy(), y.numpy()


def refused(error: Exception) -> bool:
    """Whether an error is one of our sentences, and not an error of a library."""
    return type(error) in (ValueError, BundleError) and "\n" not in str(error) and 20 < len(str(error)) < 600


@pytest.mark.parametrize("name", FOREIGN)
def test_a_damaged_checkpoint_is_refused_or_read_as_its_library_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, record_property: Callable[[str, object], None]
) -> None:
    foreign, x = FOREIGN[name], activations(ROWS, D_IN).double()
    sound, spoilt, out = (tmp_path / part for part in ("sound", "spoilt", "out"))
    sound.mkdir()
    foreign.save(sound)
    convert(sound / foreign.path, out)
    original = library_result(lambda: foreign.library(sound, monkeypatch), x)
    assert original is not None
    assert (original[0] > 0).any(axis=1).all()
    for actual, expected in zip(computed(out, x.numpy()), original, strict=True):
        assert_near(actual, expected)
    shutil.rmtree(out)
    outcomes, wrong = Counter[str](), []
    for seed in range(EACH):
        shutil.copytree(sound, spoilt)
        damage = spoil(spoilt, seed)
        with deadline():
            try:
                convert(spoilt / foreign.path, out)
            except Exception as error:
                outcome = "refused" if refused(error) and not out.exists() else repr(error)
            else:
                theirs = library_result(lambda: foreign.library(spoilt, monkeypatch), x)
                outcome = compared(computed(out, x.numpy()), theirs, original)
                shutil.rmtree(out)
        shutil.rmtree(spoilt)
        outcomes[outcome] += 1
        if outcome not in GOOD or [path.name for path in tmp_path.iterdir()] != ["sound"]:
            wrong.append(f"{damage}: {outcome}")
    record_property("outcomes", dict(outcomes))
    assert not wrong, "\n".join(wrong)


def compared(ours: Computed, theirs: Computed | None, original: Computed) -> str:
    """Whether a bundle computes what its library does; if not, the difference.

    If the library alone fails, the bundle must compute what the sound checkpoint computes. The damage is then in a
    field that the computation does not need, such as the name of a device.
    """
    for actual, expected in zip(ours, theirs or original, strict=True):
        if not np.isfinite(expected).all():
            return "the library computes NaN or Inf"
        try:
            assert_near(actual, expected)
        except AssertionError as error:
            return f"{'differs' if theirs else 'the library fails, and it is not the original'}: {error}"
    return "alike" if theirs else "ours alone"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_bundle_is_refused_or_computes_the_same(
    copy_of: Callable[..., Path], tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    sound, spoilt, x = copy_of(kind, sampled=True), tmp_path / "spoilt", make_x(ROWS)
    original = load(sound).encode(x)
    outcomes = Counter[str]()
    for seed in range(EACH):
        shutil.copytree(sound, spoilt)
        damage = spoil(spoilt, seed)
        with deadline():
            try:
                features = load(spoilt).encode(x)
            except Exception as error:
                assert refused(error), f"{damage}: {error!r}"
                outcomes["refused"] += 1
            else:
                for part in ("indptr", "indices", "values"):
                    assert getattr(features, part).tobytes() == getattr(original, part).tobytes(), damage
                outcomes["alike"] += 1
        shutil.rmtree(spoilt)
    record_property("outcomes", dict(outcomes))
