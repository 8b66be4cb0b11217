"""After a splice, a short run tells whether the figures at the place are those of the bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cases_common import word_tokenizer
from cases_hosts import random_weights
from click.testing import CliRunner
from conftest import D_IN
from tiny_host import host_graph, torch_host

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.cli.splice import command
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.plausibility import figures
from sae_runtime.exports.splice.splicing import Splice, SplicedGraph, splice

pytestmark = pytest.mark.usefixtures("one_thread")

HOOK, D_SAE = "encoder.layer.0", 96


def write_bundle(path: Path, measured: dict[str, float]) -> Path:
    manifest = Manifest(
        architecture=Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold"),
        allocation=Allocation(kind="mutual", k=8.0),
        slots=D_SAE,
        hook=HOOK,
        measured=measured,
    )
    bundles.write(path, random_weights(D_IN, D_SAE, 0.8), manifest)
    export(path)
    return path


@pytest.fixture(scope="module")
def true_figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The figures of the SAE on torch's activations of random tokens."""
    bundle = bundles.read(write_bundle(tmp_path_factory.mktemp("figures") / "sae", {}))
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 50, (16, 32)))
    with torch.no_grad():
        x = torch_host("bert")(ids, output_hidden_states=True).hidden_states[1].reshape(-1, D_IN).numpy()
    l0, fvu = figures(bundle, x)
    assert fvu is not None and l0 > 1
    return {"l0": l0, "fvu": fvu}


def warnings_of(folder: Path, measured: dict[str, float]) -> tuple[str, ...]:
    made: SplicedGraph = splice(
        host_graph("bert"), [Splice(bundle=write_bundle(folder / "sae", measured))], folder / "o"
    )
    return made.warnings


def test_figures_like_the_bundles_are_not_warned_of(tmp_path: Path, true_figures: dict[str, float]) -> None:
    assert warnings_of(tmp_path, true_figures) == ()


def test_figures_far_from_the_bundles_are_warned_of(tmp_path: Path, true_figures: dict[str, float]) -> None:
    (warning,) = warnings_of(tmp_path, {"l0": true_figures["l0"] * 10, "fvu": true_figures["fvu"] - 0.9})
    assert "mean L0 is" in warning and "explained variance is" in warning and HOOK in warning


def test_a_bundle_without_figures_has_nothing_to_compare(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, {}) == ()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch_host("bert").save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "text.txt").write_text("\n".join("w1 w5 w9 w3 w30 w40" for _ in range(3)))
    return folder


def check(folder: Path, model: Path, *more: str) -> tuple[int, str]:
    bundle = write_bundle(folder / "sae", {})
    arguments = [str(host_graph("bert")), "--sae", str(bundle), "--check", str(model), "-o", str(folder / "out")]
    result = CliRunner().invoke(command, [*arguments, "--text", str(model / "text.txt"), *more])
    return result.exit_code, result.output + str(result.exception or "")


def test_check_compares_with_the_torch_model(tmp_path: Path, model_folder: Path) -> None:
    code, told = check(tmp_path, model_folder)
    assert code == 0, told
    assert "Jaccard 1.0000" in told and "outputs within" in told


def test_check_refuses_a_place_that_is_not_the_models(tmp_path: Path, model_folder: Path) -> None:
    other = model_folder.parent / "other"
    changed = torch_host("bert").__class__(torch_host("bert").config)
    changed.save_pretrained(other)
    word_tokenizer().save_pretrained(other)
    (other / "text.txt").write_text("w1 w5 w9 w3")
    code, told = check(tmp_path, other)
    assert code != 0 and "reads other features than" in told
