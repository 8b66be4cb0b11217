"""Modules that a forward pass calls several times: the place of each call is torch's or refused."""

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from cases_common import Rows, relative_error
from place_matrix import inferred
from torch import nn

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.exports.model.call_numbers import number_calls
from sae_runtime.exports.splice.hook_tensor import find_hook

pytestmark = pytest.mark.usefixtures("one_thread")

D, IDS = 16, torch.arange(3, 11).reshape(2, 4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(x + self.second(torch.relu(self.first(x)))))


class Universal(nn.Module):
    """One layer three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(self.layer(self.layer(x))))


class Tied(nn.Module):
    """The same norm before each of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.one(self.norm(x))
        return torch.as_tensor(x + self.two(self.norm(x)))


class InTurns(nn.Module):
    """Two layers, each twice, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Layer(), Tied()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.two(self.one(self.two(self.one(x)))))


class Siamese(nn.Module):
    """One tower for two readings of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.tower(x) * self.tower(torch.flip(x, [1])))


BODIES = {"universal": Universal, "tied": Tied, "in turns": InTurns, "siamese": Siamese}


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(64, D), body, nn.Linear(D, D)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.body(self.embed(ids))))


@functools.cache
def net(kind: str) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(BODIES[kind]()).eval()


@functools.cache
def calls(kind: str) -> dict[str, list[Rows]]:
    """The outputs of every call of each module, by torch hooks."""
    seen: dict[str, list[Rows]] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _args, y, name=name: seen.setdefault(name, []).append(y.detach().numpy().copy())
        )
        for name, module in net(kind).named_modules()
        if name
    ]
    with torch.no_grad():
        net(kind)(IDS)
    for handle in handles:
        handle.remove()
    return seen


@functools.cache
def graph_of(folder: Path, kind: str, form: str) -> Path:
    path = folder / f"{kind}-{form}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "paths":
            torch.onnx.export(net(kind), (IDS,), str(path), dynamo=False, opset_version=17, input_names=["ids"])
            inferred(path)
            return path
        program = torch.onnx.export(net(kind), (IDS,), dynamo=True, verbose=False, input_names=["ids"])
    assert program is not None
    if form == "numbered":
        number_calls(program)
    program.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls")


def value_at(graph: Path, hook: str) -> Rows:
    model = ir.load(graph)
    value = find_hook(model.graph, parse_hook(hook), D)
    if not value.is_graph_output():
        model.graph.outputs.append(value)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([value.name], {"ids": IDS.numpy()})[0])


@pytest.mark.parametrize("form", ["numbered", "plain", "paths"])
@pytest.mark.parametrize("kind", BODIES)
def test_a_call_is_torchs_and_a_module_without_one_is_refused(folder: Path, kind: str, form: str) -> None:
    graph = graph_of(folder, kind, form)
    refused = []
    for name, outputs in calls(kind).items():
        for call, output in enumerate(outputs):
            hook = f"{name}@{call}" if len(outputs) > 1 else name
            try:
                assert relative_error(value_at(graph, hook), output) < 1e-5, hook
            except ValueError as error:
                assert "does not tell whether" in str(error)
                refused.append(hook)
        if len(outputs) > 1:
            with pytest.raises(ValueError, match=rf"calls {name} {len(outputs)} times; name one of|not tell whether"):
                value_at(graph, name)
    # Calls in a row look like one call that does everything so often.
    hidden = {("universal", "plain"): ["body.layer@0", "body"], ("in turns", "plain"): ["body"]}
    assert refused == hidden.get((kind, form), [])


def test_the_first_of_calls_in_a_row_is_refused_where_nothing_tells_it_from_the_whole(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"calls body.layer once or 3 times; export .* with sae-runtime export-model"):
        value_at(graph_of(folder, "universal", "plain"), "body.layer")
    with pytest.raises(ValueError, match=r"no body.layer@3, for a forward pass calls the module 3 times"):
        value_at(graph_of(folder, "universal", "numbered"), "body.layer@3")
