"""How a transformers model is called inside a graph: with keys and values of a past, or without."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim
from transformers import DynamicCache

Inputs = dict[str, Any]


class ModelForm(torch.nn.Module):
    """A model as a function of tensors: a causal language model with a head, or any other model.

    Attributes:
        layers: keys and values [1, heads, 1, width] of each layer, where the graph takes a past; else empty.
        outputs: the names of the outputs, in the order of `forward`.
    """

    def __init__(self, model: Any, *, cache: bool) -> None:
        """The form of a model.

        Raises:
            ValueError: `cache` is set, and the model is causal but keeps keys and values in another way.
        """
        super().__init__()
        self.model = model
        self.causal = model.get_output_embeddings() is not None
        self.layers = _layers(model) if cache and self.causal else []
        self.outputs = ["logits" if self.causal else "last_hidden_state"]
        self.outputs += [f"present.{i}.{kind}" for i in range(len(self.layers)) for kind in ("key", "value")]
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Any, attention_mask: Any, past: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Logits, then keys and values of each layer where there is a past; for other models, last hidden states."""
        settings: dict[str, Any] = {"use_cache": bool(self.layers)} if self.causal else {}
        if self.causal and self._takes_positions:
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            settings["position_ids"] = positions[:, past[0][0].shape[2] :] if self.layers else positions
        if self.layers:
            settings["past_key_values"] = DynamicCache(ddp_cache_data=[tuple(pair) for pair in past])
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **settings)
        if not self.layers:
            return (result.logits if self.causal else result.last_hidden_state,)
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)

    def inputs(self, batch: int, time: int, past: int) -> Inputs:
        """Random ids, a mask with padding on the left of the first row, and random keys and values of a past."""
        past = past if self.layers else 0
        size = self.model.config.get_text_config().vocab_size
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, size, (batch, time)))
        mask = torch.ones(batch, past + time, dtype=torch.int64)
        mask[0, : min(2, past + time - 1)] = 0
        generator = torch.Generator().manual_seed(0)
        pairs = [
            tuple(torch.randn(batch, t.shape[1], past, t.shape[3], generator=generator).to(t.dtype) for t in pair)
            for pair in self.layers
        ]
        return {"input_ids": ids, "attention_mask": mask} | ({"past": pairs} if pairs else {})

    def shapes(self) -> Inputs:
        """Which dimensions of the inputs vary; the mask is as long as the past and the ids together."""
        batch = Dim("batch")
        ids = {0: batch, 1: Dim("sequence")}
        if not self.layers:
            return {"input_ids": ids, "attention_mask": ids}
        # Some models slice a table by the length of the past, so torch wants to hear that it ends with the table.
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        pair = ({0: batch, 2: Dim("past", max=limit)},) * 2
        return {"input_ids": ids, "attention_mask": {0: batch, 1: Dim.DYNAMIC}, "past": [pair] * len(self.layers)}

    def results(self, inputs: Inputs) -> list[NDArray[Any]]:
        """What torch computes from the inputs, in the order of `outputs`."""
        with torch.inference_mode():
            return [tensor.numpy() for tensor in self(**inputs)]


def graph_inputs(inputs: Inputs) -> Inputs:
    """The tensors of the inputs by the names that they have in the graph."""
    named = {name: value for name, value in inputs.items() if name != "past"}
    for i, (key, value) in enumerate(inputs.get("past", [])):
        named |= {f"past_key_values.{i}.key": key, f"past_key_values.{i}.value": value}
    return named


def _layers(model: Any) -> list[tuple[Any, Any]]:
    """Keys and values of one token in each layer."""
    with torch.inference_mode():
        try:
            result = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True)
        except Exception as error:  # the model's code raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{type(model).__name__} does not run on ids with use_cache ({reason})") from error
        filled = getattr(result, "past_key_values", None)
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(filled, "layers", [])]
    if {getattr(tensor, "ndim", 0) for pair in layers for tensor in pair} != {4}:
        raise ValueError(
            f"{type(model).__name__} keeps no keys and values [b, heads, t, width] for each layer; "
            "export it without cache"
        )
    return layers
