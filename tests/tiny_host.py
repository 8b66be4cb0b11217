"""Host models of a few thousand random weights, as torch models and as graphs of `export_model`."""

import fcntl
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from conftest import D_IN, SHARED
from numpy.typing import NDArray
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from sae_runtime.bundle.splices import read_splices
from sae_runtime.exports.export_model import export_model

Arrays = dict[str, NDArray[Any]]
LAYERS, HEADS, VOCABULARY = 2, 2, 50
HOOKS = {"bert": "encoder.layer.0", "gpt2": "transformer.h.0"}


@functools.cache
def torch_host(kind: str) -> Any:
    """A BERT encoder, or a GPT-2 language model; its activations are [b, t, D_IN] and about as large as `make_x`."""
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            sizes |= {"hidden_size": D_IN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
            return _still(BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=64)))
        sizes |= {"n_embd": D_IN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
        model = _still(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))
        with torch.no_grad():
            model.transformer.wte.weight *= 60
        return model


def _still(model: Any) -> Any:
    """The model without dropout."""
    return model.eval()


@functools.cache
def host_graph(kind: str) -> Path:
    """The graph of `torch_host`, with keys and values for GPT-2. Do not alter it.

    All processes of a test run share one export, since torch needs many seconds for it.
    """
    home = Path(os.environ[SHARED])
    with (home / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = home / kind / "host.onnx"
        return path if path.exists() else export_model(torch_host(kind), path)


def some_ids(batch: int, time: int, seed: int = 0) -> Arrays:
    """Ids [batch, time] and a mask that hides the beginning of every third row."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, time), np.int64)
    mask[::3, : time // 3] = 0
    return {"input_ids": rng.integers(0, VOCABULARY, (batch, time)), "attention_mask": mask}


def no_past(batch: int) -> Arrays:
    """Keys and values of a past without tokens."""
    empty = np.empty((batch, HEADS, 0, D_IN // HEADS), np.float32)
    return {f"past_key_values.{i}.{kind}": empty for i in range(LAYERS) for kind in ("key", "value")}


def run(path: Path, feed: Arrays, *, basic: bool = False, read: bool = False) -> Arrays:
    """All outputs of a graph by name, from plain onnxruntime; `read` asks the SAEs in it for their features."""
    session = open_plainly(path, basic)
    feed = feed | (slots_of(path) if read else {})
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def slots_of(path: Path) -> Arrays:
    """Inputs of a spliced graph that ask every SAE in it for its features."""
    spliced = read_splices(open_plainly(path, False).get_modelmeta().custom_metadata_map)
    return {f"{name}_slots": np.array([one.slots]) for name, one in spliced.items() if one.slots}


@functools.cache
def open_plainly(path: Path, basic: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def next_step(outputs: Arrays, feed: Arrays, ids: NDArray[Any]) -> Arrays:
    """The feed of the next step: new ids [b, 1], the keys and values of the last step, and a longer mask."""
    mask = np.concatenate([feed["attention_mask"], np.ones_like(ids)], axis=1)
    past = {name.replace("present", "past_key_values"): v for name, v in outputs.items() if name.startswith("present")}
    return {"input_ids": ids, "attention_mask": mask, **past}
