"""A module that runs three times in a pass (ALBERT): `harvest`, `attach` and `splice` must mean the same call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_common import Rows, Weights, hooked, relative_error, true_features
from cases_hosts import edit_inputs, random_sae, read_features, spliced
from numpy.typing import NDArray
from tiny_host import run
from transformers import AlbertConfig, AlbertModel

from sae_runtime import Edit
from sae_runtime.exports.export_model import export_model
from sae_runtime.train import attach
from sae_runtime.train.harvest.hook_point import find_hook, hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")

HOOK = "encoder.albert_layer_groups.0.albert_layers.0"
D_SAE, CALLS = 160, 3
EDIT = Edit.add(3, 4.0)


class Case:
    """The model, its graph, an SAE, and the outputs of the module's calls by a torch hook."""

    def __init__(self, folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = albert()
        self.folder = folder
        self.ids = torch.arange(3, 11)[None]
        self.feed: dict[str, NDArray[Any]] = {
            "input_ids": self.ids.numpy(),
            "attention_mask": np.ones((1, 8), np.int64),
        }
        self.calls: list[Rows] = hooked(self.model, HOOK, lambda: self.model(self.ids))
        self.sae = folder / "sae"
        self.weights: Weights = random_sae(self.sae, threshold=0.6)
        self.host = export_model(self.model, folder / "host.onnx")

    def graph(self, call: int) -> Path:
        """The graph with the SAE at one call of the module."""
        return spliced(self.host, self.sae, f"{HOOK}@{call}", self.folder / f"out-{call}")[0]


def albert() -> Any:
    """Random weights, large enough that the three calls differ."""
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": CALLS}
    config = AlbertConfig(
        vocab_size=64, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, **sizes
    )
    model: Any = AlbertModel(config)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("albert"))


def call_that_harvest_reads(case: Case, hook: str) -> int:
    """The number of the call whose output the rows of `harvest` are."""
    given = {"input_ids": case.ids, "attention_mask": torch.ones_like(case.ids)}
    [x] = hidden_states([find_hook(case.model, hook)], case.model, given, case.ids.shape, whole=True)
    return [relative_error(x.numpy(), call) < 1e-6 for call in case.calls].index(True)


def call_that_the_splice_reads(case: Case, call: int) -> int:
    """The number of the call whose features the spliced graph gives."""
    features = read_features(case.graph(call), case.feed, D_SAE)
    expected = [true_features(case.weights, call) for call in case.calls]
    return [relative_error(features, truth) < 1e-5 for truth in expected].index(True)


def test_the_three_calls_differ(case: Case) -> None:
    assert len(case.calls) == CALLS
    assert relative_error(case.calls[0], case.calls[2]) > 0.1


@pytest.mark.parametrize("call", range(CALLS))
def test_harvest_and_a_splice_read_the_same_call(case: Case, call: int) -> None:
    assert call_that_harvest_reads(case, f"{HOOK}@{call}") == call_that_the_splice_reads(case, call) == call


@pytest.mark.parametrize("call", range(CALLS))
def test_an_edit_by_attach_and_by_a_splice_gives_the_same_output(case: Case, call: int) -> None:
    edited = run(case.graph(call), case.feed | edit_inputs([EDIT], D_SAE))["last_hidden_state"]
    with torch.no_grad(), attach(case.model, f"{HOOK}@{call}", case.sae, [EDIT]):
        attached = case.model(case.ids).last_hidden_state.numpy()
    assert relative_error(edited, attached) < 1e-4


@pytest.mark.parametrize(("hook", "named"), [(HOOK, "calls {} 3 times; name one of its calls"), (f"{HOOK}@3", "{}@2")])
def test_harvest_attach_and_a_splice_refuse_a_hook_without_one_call_by_the_same_sentence(
    case: Case, hook: str, named: str
) -> None:
    def attached() -> None:
        with attach(case.model, hook, case.sae, [EDIT]), torch.no_grad():
            case.model(case.ids)

    ways: list[Callable[[], object]] = [
        lambda: call_that_harvest_reads(case, hook),
        attached,
        lambda: spliced(case.host, case.sae, hook, case.folder / "never"),
    ]
    sentences = []
    for way in ways:
        with pytest.raises(ValueError, match=named.format(HOOK)) as raised:
            way()
        sentences.append(str(raised.value))
    assert len(set(sentences)) == 1


def test_a_module_around_the_calls_is_called_once(case: Case) -> None:
    _, tensor = spliced(case.host, case.sae, "encoder", case.folder / "encoder")
    assert tensor == spliced(case.host, case.sae, f"{HOOK}@{CALLS - 1}", case.folder / "last")[1]
