"""Hooks in a graph whose nodes onnxruntime's optimiser has fused: equal to a torch hook, or refused."""

import copy
import functools
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from cases_common import Rows, hooked, jaccard, true_features
from cases_hosts import random_sae, read_features, spliced
from conftest import D_IN
from onnxruntime.transformers.optimizer import optimize_model
from tiny_host import HEADS, some_ids, torch_host

from sae_runtime.exports.export_model import export_model

pytestmark = pytest.mark.usefixtures("one_thread")

D_SAE = 160
HOOKS = (
    "encoder.layer.0.output",
    "encoder.layer.0.output.dense",
    "encoder.layer.0.attention",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.0",
    "embeddings",
)
FEED = {name: array[1:2] for name, array in some_ids(2, 10).items()}  # the second row hides no token


@functools.cache
def model() -> Any:
    """The tiny BERT with biases that are not 0, since the optimiser moves a bias into the next node."""
    biased = copy.deepcopy(torch_host("bert"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in biased.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return biased


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(model(), tmp_path_factory.mktemp("host") / "host.onnx")


@pytest.fixture(scope="module")
def optimised(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a tiny BERT after the fusions that the optimiser makes in Python."""
    path = tmp_path_factory.mktemp("fused") / "host.onnx"
    optimize_model(str(host), model_type="bert", num_heads=HEADS, hidden_size=D_IN, opt_level=0).save_model_to_file(
        str(path)
    )
    return path


def torch_output(hook: str) -> Rows:
    """What the module gives, by a torch hook."""
    (x,) = hooked(model(), hook, lambda: model()(**{name: torch.from_numpy(a) for name, a in FEED.items()}))
    return x


def agreement(host: Path, hook: str, folder: Path) -> float:
    """The Jaccard index of the features that a splice at a hook gives with those of torch's activation."""
    x = torch_output(hook)
    # A threshold of the size of these activations keeps about one feature in ten.
    weights = random_sae(folder / "sae", D_IN, D_SAE, threshold=1.5 * float(x.std()), bias=0)
    graph, _ = spliced(host, folder / "sae", hook, folder / "out")
    return jaccard(read_features(graph, FEED, D_SAE), true_features(weights, x))


def test_the_optimiser_fuses_the_normalisations(optimised: Path) -> None:
    kinds = {node.op_type for node in onnx.load(str(optimised)).graph.node}
    assert "SkipLayerNormalization" in kinds


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_in_the_exported_graph_is_torchs(host: Path, hook: str, tmp_path: Path) -> None:
    assert agreement(host, hook, tmp_path) > 0.98


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_in_the_optimised_graph_is_torchs_or_refused(optimised: Path, hook: str, tmp_path: Path) -> None:
    assert_torchs_or_refused(optimised, hook, tmp_path)


def assert_torchs_or_refused(host: Path, hook: str, folder: Path) -> None:
    try:
        agreed = agreement(host, hook, folder)
    except ValueError:
        return
    assert agreed > 0.98
