"""An SAE that was fitted on activations which TransformerLens centred, served on those of the model as it is.

With `center_writing_weights`, TransformerLens takes the mean over d_in from the residual stream. An SAE with W_enc less
its mean over d_in, and b_enc - b_dec W_enc as its bias, gives the same features on the activations of the model itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_common import Rows, Truth, Weights, jaccard, pre_activations, relative_error
from cases_hosts import random_weights
from safetensors.numpy import save_file

from sae_runtime import SAE, load
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export

D_IN, D_SAE = 32, 160
SHARED: dict[str, Any] = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
}
SOURCE: dict[str, Any] = {
    "model_name": "gpt2-small",
    "hook_name": "blocks.1.hook_resid_pre",
    "model_from_pretrained_kwargs": {"center_writing_weights": True},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "version 6": {**SHARED, "metadata": {"sae_lens_version": "6.54.12", **SOURCE}},
    "flat": {**SHARED, **SOURCE, "activation_fn_str": "relu", "hook_layer": 1, "hook_head_index": None},
}


def checkpoint_weights() -> Weights:
    """An encoder with a part along the vector of ones, which centred activations never show."""
    weights = {name: tensor for name, tensor in random_weights(D_IN, D_SAE, 0.0).items() if name != "threshold"}
    weights["W_enc"] = (weights["W_enc"] + 0.15).astype(np.float32)
    weights["b_enc"] = np.random.default_rng(2).normal(-0.8, 0.1, D_SAE).astype(np.float32)
    return weights


def stream() -> Rows:
    """Activations of a model, whose mean over d_in is not 0."""
    return np.random.default_rng(3).normal(0.6, 1.5, (48, D_IN)).astype(np.float32)


def centred(x: Rows) -> Rows:
    """What TransformerLens gives for them."""
    mean: Rows = x.mean(axis=1, keepdims=True)
    return x - mean


def true_features() -> Truth:
    return pre_activations(checkpoint_weights(), centred(stream()))


@pytest.fixture(params=SETTINGS)
def sae(request: pytest.FixtureRequest, tmp_path: Path) -> SAE:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(dict(checkpoint_weights()), str(folder / "sae_weights.safetensors"))
    (folder / "cfg.json").write_text(json.dumps(SETTINGS[request.param]))
    convert(folder, tmp_path / "bundle")
    export(tmp_path / "bundle")
    return load(tmp_path / "bundle")


def test_the_formula_in_the_docstring_holds() -> None:
    w = {name: tensor.astype(np.float64) for name, tensor in checkpoint_weights().items()}
    z = stream() @ (w["W_enc"] - w["W_enc"].mean(axis=0)) + w["b_enc"] - w["b_dec"] @ w["W_enc"]
    assert relative_error(np.maximum(z, 0), true_features()) < 1e-5


def test_on_centred_activations_the_features_are_the_checkpoints(sae: SAE) -> None:
    assert relative_error(sae.encode(centred(stream())).to_dense(), true_features()) < 1e-5


def test_on_the_models_own_activations_the_features_are_the_checkpoints(sae: SAE) -> None:
    features = sae.encode(stream()).to_dense()
    assert jaccard(features, true_features()) > 0.99
    assert relative_error(features, true_features()) < 1e-5
