"""SmolLM2-135M-Instruct with SAEs at three layers, as a float32 export and as genai's int4 build, against torch.

`make smollm2` makes the model; without it these tests skip themselves. The truth is the torch model with hooks that
edit in float64. For the int4 build it has the build's own weights, made float again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cases_common import Rows, Truth, hooked, pre_activations, relative_error, true_features
from cases_hosts import random_weights
from numpy.typing import NDArray
from onnx import numpy_helper
from tiny_host import Arrays, run
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_runtime import Edit
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.export import export
from sae_runtime.exports.export_model import export_model
from sae_runtime.exports.splice.splicing import Splice, splice

MODEL = Path(".venv/smollm2")
pytestmark = [
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="make smollm2"),
    pytest.mark.filterwarnings("ignore"),  # the builder's own
]

LAYERS, D_IN, D_SAE = (5, 15, 25), 576, 2048
TEXTS = ["The capital of France is Paris, and the capital of Italy is", "Open the file."]


@dataclass(frozen=True)
class Host:
    """A torch model, a graph of the same weights with SAEs at `LAYERS`, and the SAEs' weights by layer."""

    torch: Any
    graph: Path
    weights: Mapping[int, Mapping[str, NDArray[np.float32]]]
    tolerance: float  # of values, relative to the largest


def dequantised(graph: Path) -> dict[str, torch.Tensor]:
    """The 4-bit weights of genai's graph as float32 [out, in], by the names of their nodes."""
    model = onnx.load(str(graph))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            packed, scales = arrays[node.input[1]], arrays[node.input[2]]
            numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32)
            weight = (numbers - 8) * scales.reshape(*packed.shape[:2], 1)
            made[node.name.removesuffix("/MatMul_Q4")] = torch.from_numpy(weight.reshape(packed.shape[0], -1))
    return made


def with_weights_of(graph: Path, model: Any) -> Any:
    """The model with the weights of genai's int4 build."""
    weights = dequantised(graph)
    with torch.no_grad():
        model.lm_head.weight.copy_(weights["/lm_head"])  # the embeddings are the same tensor
        for number, layer in enumerate(model.model.layers):
            name = f"/model/layers.{number}"
            q, k, v = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            joined = torch.split(weights[f"{name}/attn/qkv_proj"], [part.out_features for part in (q, k, v)])
            for part, weight in zip((q, k, v), joined, strict=True):
                part.weight.copy_(weight)
            layer.self_attn.o_proj.weight.copy_(weights[f"{name}/attn/o_proj"])
            for part in ("gate_proj", "up_proj", "down_proj"):
                getattr(layer.mlp, part).weight.copy_(weights[f"{name}/mlp/{part}"])
    return model


def tokens() -> dict[str, torch.Tensor]:
    """Two texts of other lengths, padded on the right, as genai's attention wants it."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    given = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    return given | {"position_ids": (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def real() -> NDArray[np.bool_]:
    return tokens()["attention_mask"].bool().numpy()


def activation(model: Any, layer: int) -> Rows:
    (x,) = hooked(model, f"model.layers.{layer}", lambda: model(**tokens()))
    return x


def fitted_sae(path: Path, x: Rows) -> Mapping[str, NDArray[np.float32]]:
    """An SAE with random directions, whose threshold lets about 32 features of an ordinary token be active."""
    norms = np.linalg.norm(x[real()], axis=1)
    ordinary = x[real()][norms < 3 * np.median(norms)]
    weights = random_weights(D_IN, D_SAE, 0.0) | {"b_dec": ordinary.mean(axis=0).astype(np.float32)}
    cut = np.quantile(pre_activations(weights, ordinary), 1 - 32 / D_SAE)
    weights["threshold"] = np.full(D_SAE, cut, np.float32)
    manifest = Manifest(
        architecture=Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold"),
        allocation=Allocation(kind="mutual", k=32.0),
        slots=D_SAE,  # the first token, of massive norm, has some 1,000 active features
    )
    bundle.write(path, weights, manifest)
    export(path)
    return weights


def spliced(model: Any, graph: Path, home: Path, tolerance: float) -> Host:
    weights = {layer: fitted_sae(home / f"sae{layer}", activation(model, layer)) for layer in LAYERS}
    wanted = [
        Splice(bundle=home / f"sae{layer}", hook=f"model.layers.{layer}", name=f"sae{layer}", required=True)
        for layer in LAYERS
    ]
    return Host(model, splice(graph, wanted, home / "spliced").path, weights, tolerance)


def torch_model() -> Any:
    model: Any = LlamaForCausalLM.from_pretrained(MODEL)
    return model.eval()


def float32_host(home: Path) -> Host:
    model = torch_model()
    return spliced(model, export_model(model, home / "host.onnx"), home, 1e-4)


def int4_host(home: Path) -> Host:
    """genai's build whose products take float32 activations; by default they take int8 ones."""
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    task = ("", str(MODEL), str(home / "host"), "int4", "cpu", str(home / "cache"))
    builder.create_model(*task, **builder.parse_extra_options(*task, ["accuracy_level=1"]))
    graph = home / "host" / "model.onnx"
    model = with_weights_of(graph, torch_model())
    return spliced(model, graph, home, 1e-3)


@pytest.fixture(scope="module", params=[float32_host, int4_host], ids=["float32", "int4"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    build: Callable[[Path], Host] = request.param
    return build(tmp_path_factory.mktemp("smollm2"))


def feed(edits: Mapping[int, Sequence[Sequence[Edit]]] | None = None, gate: NDArray[Any] | None = None) -> Arrays:
    """The inputs of the spliced graph for `tokens`, with no past and with edits of each layer, for each request."""
    given = {name: tensor.numpy() for name, tensor in tokens().items()}
    batch = len(TEXTS)
    past = {
        f"past_key_values.{i}.{kind}": np.empty((batch, 3, 0, 64), np.float32)
        for i in range(30)
        for kind in ("key", "value")
    }
    arrays: Arrays = {name: given[name] for name in ("input_ids", "attention_mask")} | past
    for layer in LAYERS:
        requests = edits[layer] if edits else [[]] * batch
        asked = {
            **as_inputs(requests, D_SAE),
            "gate": np.ones((1, 1, 1), np.float32) if gate is None else gate[..., None],
            "direction": np.zeros((1, 1, 1), np.float32),
            "when": np.empty((1, 0), np.int64),
            "above": np.zeros((1, 1), np.float32),
            "slots": np.array([D_SAE]),
        }
        arrays |= {f"sae{layer}_{name}": array for name, array in asked.items()}
    return arrays


def edited(weights: Mapping[str, NDArray[np.float32]], x: Rows, requests: Sequence[Sequence[Edit]], gate: Any) -> Truth:
    """x + gate (f' - f) W_dec[features], in float64, for each request its edits."""
    f = true_features(weights, x)
    y = x.astype(np.float64)
    for request, edits in enumerate(requests):
        for edit in edits:
            feature = int(edit.feature)
            old = f[request, :, feature]
            new = np.minimum(np.maximum(edit.factor * old + edit.shift, edit.low), edit.high)
            y[request] += (gate[request] * (new - old))[:, None] * weights["W_dec"][feature].astype(np.float64)
    return y


@torch.no_grad()
def torch_logits(host: Host, edits: Mapping[int, Sequence[Sequence[Edit]]] | None = None, gate: Any = None) -> Any:
    """Logits of the torch model while hooks edit what its layers give."""
    gate = np.ones((len(TEXTS), 1)) if gate is None else gate

    def edit(layer: int, requests: Sequence[Sequence[Edit]]) -> Any:
        def act(_module: Any, _arguments: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            y = torch.from_numpy(edited(host.weights[layer], x.numpy(), requests, gate)).float()
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return act

    layers = host.torch.model.layers
    handles = [layers[layer].register_forward_hook(edit(layer, asked)) for layer, asked in (edits or {}).items()]
    try:
        return host.torch(**tokens()).logits.numpy()
    finally:
        for handle in handles:
            handle.remove()


def strongest(host: Host, layer: int, count: int) -> list[int]:
    """Features that are active on ordinary tokens, the strongest first."""
    f = true_features(host.weights[layer], activation(host.torch, layer))[real()][2:]
    return [int(i) for i in np.argsort(-f.sum(axis=0))[:count]]


def every_kind(host: Host) -> dict[int, list[list[Edit]]]:
    """Five edits of the first request and two of the second, at each layer."""
    edits = {}
    for layer in LAYERS:
        a, b, c, d, e = strongest(host, layer, 5)
        cut = float(host.weights[layer]["threshold"][0])
        first = [Edit.set(a, 3 * cut), Edit.add(b, cut), Edit.scale(c, 2.0), Edit.ablate(d), Edit.cap(e, 1.1 * cut)]
        edits[layer] = [first, [Edit.set(e, 2 * cut), Edit.ablate(a)]]
    return edits


@pytest.mark.parametrize("layer", LAYERS)
def test_features_are_those_of_a_torch_hook(host: Host, layer: int) -> None:
    outputs = run(host.graph, feed())
    indices, values = outputs[f"sae{layer}_indices"], outputs[f"sae{layer}_values"]
    got = np.zeros((*values.shape[:2], D_SAE))
    np.put_along_axis(got, indices[..., ::-1], values[..., ::-1], axis=-1)  # unused slots first, with value 0
    weights, x = host.weights[layer], activation(host.torch, layer)
    z, truth = pre_activations(weights, x), true_features(weights, x)
    size = np.abs(z).max(axis=-1, keepdims=True)
    sure = (np.abs(z - weights["threshold"]) > host.tolerance * size) & real()[..., None]
    assert ((got > 0) == (truth > 0))[sure].all() and sure[real()].mean() > 0.99
    assert (np.abs(got - truth) / size)[sure].max() < host.tolerance


def test_without_edits_the_logits_are_torchs(host: Host) -> None:
    assert relative_error(run(host.graph, feed())["logits"][real()], torch_logits(host)[real()]) < host.tolerance


def test_every_kind_of_edit_gives_the_logits_of_torch_hooks(host: Host) -> None:
    edits = every_kind(host)
    got, want = run(host.graph, feed(edits))["logits"], torch_logits(host, edits)
    assert relative_error(got[real()], want[real()]) < host.tolerance
    assert relative_error(got[real()], torch_logits(host)[real()]) > 100 * host.tolerance  # they move the logits


def test_a_gate_of_each_token_gives_the_logits_of_torch_hooks(host: Host) -> None:
    edits, gate = every_kind(host), real() * np.linspace(0, 1, real().shape[1])
    got, want = run(host.graph, feed(edits, gate.astype(np.float32)))["logits"], torch_logits(host, edits, gate)
    assert relative_error(got[real()], want[real()]) < host.tolerance


def test_the_tokens_that_features_promote_are_torchs_or_absent_from_a_quantised_head(host: Host) -> None:
    found = {layer: bundle.read(host.graph.parent / f"sae{layer}").logits() for layer in LAYERS}
    if host.tolerance > 1e-4:  # int4
        assert found == dict.fromkeys(LAYERS)
        return
    gain, unembedding = host.torch.model.norm.weight.detach(), host.torch.lm_head.weight.detach()
    for layer, logits in found.items():
        assert logits is not None
        expected = (torch.from_numpy(host.weights[layer]["W_dec"]) * gain @ unembedding.T).numpy()
        scale = np.abs(expected).max()
        best = -np.sort(-expected, axis=1)[:, :10]
        np.testing.assert_allclose(logits.promoted_logits, best, atol=1e-5 * scale)
        np.testing.assert_allclose(logits.suppressed_logits, np.sort(expected, axis=1)[:, :10], atol=1e-5 * scale)
        at = np.take_along_axis(expected, logits.promoted_tokens, axis=1)
        np.testing.assert_allclose(at, logits.promoted_logits, atol=1e-5 * scale)
