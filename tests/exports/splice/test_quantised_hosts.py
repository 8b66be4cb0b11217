"""Hosts that onnxruntime's quantisers made: their activations are float at the hook, and the features are theirs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases_common import jaccard, true_features
from cases_hosts import dense
from conftest import make_weights
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from tiny_host import HOOKS, host_graph, run, some_ids

from sae_runtime.exports.splice.splicing import Splice, splice

pytestmark = pytest.mark.filterwarnings("ignore")  # the quantisers' own
BundleOf = Callable[..., Path]
D_SAE = 150
FEED = some_ids(3, 9)


class _Texts(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.feeds = iter([some_ids(3, 9, seed) for seed in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def static(host: Path, out: Path, form: QuantFormat) -> None:
    quantize_static(str(host), str(out), _Texts(), quant_format=form, per_channel=True)


def four_bits(host: Path, out: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(str(host)), block_size=16, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


QUANTISERS: dict[str, Callable[[Path, Path], object]] = {
    "dynamic": lambda host, out: quantize_dynamic(str(host), str(out)),
    "QDQ": lambda host, out: static(host, out, QuantFormat.QDQ),
    "QOperator": lambda host, out: static(host, out, QuantFormat.QOperator),
    "MatMulNBits": four_bits,
}


def with_output(host: Path, tensor: str, out: Path) -> Path:
    """The host, which gives a tensor too."""
    proto = onnx.load(str(host))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, str(out))
    return out


@pytest.mark.parametrize("name", QUANTISERS)
def test_features_are_those_of_the_quantised_hosts_own_activations(
    bundle_of: BundleOf, tmp_path: Path, name: str
) -> None:
    host = tmp_path / "host.onnx"
    QUANTISERS[name](host_graph("bert"), host)
    made = splice(host, [Splice(bundle=bundle_of("mutual", D_SAE), hook=HOOKS["bert"])])
    assert len(made.warnings) == (name == "dynamic")
    tensor = made.splices[0].tensor
    plain = run(with_output(host, tensor, tmp_path / "plain.onnx"), FEED, basic=True)
    found = run(made.path, FEED | {"sae_slots": np.array([D_SAE])}, basic=True)
    np.testing.assert_array_equal(found["last_hidden_state"], plain["last_hidden_state"])
    weights = make_weights(D_SAE, "mutual")
    f = true_features(weights, plain[tensor])
    assert (f > 0).any()
    np.testing.assert_allclose(dense(found, D_SAE), f, rtol=0, atol=1e-4 * f.max())
    exact = with_output(host_graph("bert"), "layer_norm_2", tmp_path / "exact.onnx")
    assert jaccard(f, true_features(weights, run(exact, FEED)["layer_norm_2"])) > 0.5, "it is the same place"
