"""The residual stream of blocks whose attention and MLP run side by side: between the two there is no stream."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from cases_common import Rows, hooked, relative_error
from cases_hosts import random_sae, spliced
from tiny_host import run

from sae_runtime.exports.export_model import export_model

pytestmark = pytest.mark.usefixtures("one_thread")

D_IN = 32
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": D_IN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2_LIKE: dict[str, Any] = {"vocab_size": 64, "n_embd": D_IN, "n_layer": 2, "n_head": 4, "n_positions": 64}
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "GPTJ": {**GPT2_LIKE, "rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 1},
    "Falcon": {name: value for name, value in LLAMA_LIKE.items() if name in ("vocab_size", "hidden_size")}
    | {"num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1},
    "Gemma2": {**LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 8},
}
PARALLEL = {
    "GPTNeoX": "gpt_neox.layers.1",
    "Phi": "model.layers.1",
    "GPTJ": "transformer.h.1",
    "Cohere": "model.layers.1",
    "Falcon": "transformer.h.1",
}
IN_TURN = {"Gemma2": "model.layers.1", "Olmo2": "model.layers.1"}
IDS = np.random.default_rng(0).integers(3, 64, (2, 7))


@functools.cache
def torch_model(kind: str) -> Any:
    """A model of two blocks with weights large enough that each part of a block matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**OWN_SETTINGS.get(kind, LLAMA_LIKE))
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(8)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel")
    random_sae(path / "sae", threshold=0.4)
    return path


def read_at(folder: Path, kind: str, where: str) -> Rows:
    """What a splice reads as a place of the residual stream, from the host's graph with this tensor as an output."""
    host = folder / kind / "host.onnx"
    if not host.exists():
        export_model(torch_model(kind), host, cache=False)
    _, tensor = spliced(host, folder / "sae", f"blocks.1.hook_{where}", folder / "out")
    model = onnx.load(str(host))
    model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    tap = host.with_name(f"{where}.onnx")
    onnx.save(model, str(tap))
    return run(tap, {"input_ids": IDS, "attention_mask": np.ones_like(IDS)})[tensor]


def torch_output(kind: str, module: str) -> Rows:
    """What a module gives, by a torch hook."""
    model = torch_model(kind)
    (x,) = hooked(model, module, lambda: model(torch.from_numpy(IDS)))
    return x


def stream_before(kind: str, block: str) -> Rows:
    """The residual stream that goes into the second block: what the first one gives."""
    return torch_output(kind, block.removesuffix("1") + "0")


@pytest.mark.parametrize("kind", PARALLEL | IN_TURN)
def test_resid_pre_is_what_the_block_before_gives(folder: Path, kind: str) -> None:
    block = (PARALLEL | IN_TURN)[kind]
    assert relative_error(read_at(folder, kind, "resid_pre"), stream_before(kind, block)) < 1e-5


@pytest.mark.parametrize("kind", PARALLEL | IN_TURN)
def test_resid_post_is_what_the_block_gives(folder: Path, kind: str) -> None:
    block = (PARALLEL | IN_TURN)[kind]
    assert relative_error(read_at(folder, kind, "resid_post"), torch_output(kind, block)) < 1e-5


@pytest.mark.parametrize("kind", IN_TURN)
def test_resid_mid_is_the_stream_after_attention(folder: Path, kind: str) -> None:
    block = IN_TURN[kind]
    attention = torch_output(kind, f"{block}.post_attention_layernorm")
    assert relative_error(read_at(folder, kind, "resid_mid"), stream_before(kind, block) + attention) < 1e-5


@pytest.mark.parametrize("kind", PARALLEL)
def test_resid_mid_of_a_parallel_block_is_refused(folder: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="resid_mid"):
        read_at(folder, kind, "resid_mid")
