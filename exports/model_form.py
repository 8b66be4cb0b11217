"""How a transformers model is called inside a graph: with keys and values of a past, or without."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np


class PlainForm:
    """A model without keys and values: its inputs, its outputs, and how to call it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal = model.get_output_embeddings() is not None
        self.outputs = ["logits" if self.causal else "last_hidden_state"]
        self.layers: list[Any] = []
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def inputs(self, batch: int, time: int, past: int) -> dict[str, Any]:
        """Random ids, and a mask with padding on the left of the first row, as torch tensors."""
        import torch

        size = self.model.config.get_text_config().vocab_size
        rng = np.random.default_rng(0)
        mask = torch.ones(batch, past + time, dtype=torch.int64)
        mask[0, : min(2, past + time - 1)] = 0
        return {"input_ids": torch.from_numpy(rng.integers(0, size, (batch, time))), "attention_mask": mask}

    def call(self, input_ids: Any, attention_mask: Any, past: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The outputs, in the order of `outputs`."""
        settings: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if self.causal and self._takes_positions:
            settings["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **settings)
        return (result.logits if self.causal else result.last_hidden_state,)

    def shapes(self) -> dict[str, Any]:
        """Which dimensions of the inputs vary."""
        from torch.export import Dim

        ids = {0: Dim("batch"), 1: Dim("sequence")}
        return {"input_ids": ids, "attention_mask": ids}


class CausalForm(PlainForm):
    """A causal language model with keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        import torch

        with torch.inference_mode():
            filled = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
        try:
            self.layers = [(layer.keys, layer.values) for layer in filled.layers]
            ranks = {tensor.ndim for pair in self.layers for tensor in pair}
        except AttributeError:
            ranks = set()
        if ranks != {4}:
            raise ValueError(
                f"{type(model).__name__} keeps no keys and values [b, heads, t, width] for each layer; "
                "export it without cache"
            )
        self.outputs += [f"present.{i}.{kind}" for i in range(len(self.layers)) for kind in ("key", "value")]

    def inputs(self, batch: int, time: int, past: int) -> dict[str, Any]:
        """The inputs of a plain model, and random keys and values of a past."""
        import torch

        generator = torch.Generator().manual_seed(0)
        pairs = [
            tuple(torch.randn(batch, t.shape[1], past, t.shape[3], generator=generator).to(t.dtype) for t in pair)
            for pair in self.layers
        ]
        return super().inputs(batch, time, past) | {"past": pairs}

    def call(self, input_ids: Any, attention_mask: Any, past: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Logits, then keys and values of each layer."""
        from transformers import DynamicCache

        cache = DynamicCache(ddp_cache_data=[tuple(pair) for pair in past])
        settings: dict[str, Any] = {}
        if self._takes_positions:
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            settings["position_ids"] = positions[:, past[0][0].shape[2] :]
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **settings
        )
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)

    def shapes(self) -> dict[str, Any]:
        """The varying dimensions; the mask is as long as the past and the ids together."""
        from torch.export import Dim

        shapes = super().shapes()
        batch = shapes["input_ids"][0]
        pair = ({0: batch, 2: Dim("past")},) * 2
        shapes["attention_mask"] = {0: batch, 1: Dim.DYNAMIC}
        return shapes | {"past": [pair] * len(self.layers)}
