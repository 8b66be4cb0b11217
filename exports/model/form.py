"""How a transformers model is called inside a graph: which part of it, with which inputs, with or without a past."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from sae_runtime.exports.model.inputs import Input, Tensors, floats, ids, inputs_of

PARTS = ("encoder", "decoder", "text", "vision")
_PART_NAMES = {"text": ("text_model",), "vision": ("vision_model", "vision_tower", "visual")}
_NOT_GIVEN = ("loss", "past_key_values", "hidden_states", "attentions", "cross_attentions", "encoder_hidden_states")
_STATES = ("encoder_last_hidden_state", "encoder_attentions", "decoder_hidden_states", "decoder_attentions")


class Form(torch.nn.Module):
    """A model, or a part of it, as a function of tensors.

    Attributes:
        inputs: the inputs of the graph but the past, by name, in their order.
        layers: keys and values [1, heads, 1, width] of each layer, where the graph takes a past; else empty.
        outputs: the names of the outputs, in the order of `forward`.
        causal: the model writes text, so its positions are counted from the mask.
        part: what is called, of `PARTS`; None for the whole model.
    """

    def __init__(self, model: Any, *, cache: bool, part: str | None = None, image: int | None = None) -> None:
        """The form of a model; of one with encoder and decoder, the encoder is called unless `part` says otherwise.

        Raises:
            ValueError: the model lacks the part, does not run on the inputs that are known, or `cache` is set and it
                keeps something else than keys and values.
        """
        super().__init__()
        self.model = model
        encodes = getattr(model.config, "is_encoder_decoder", False)
        if getattr(model.config, "attention_type", None) == "block_sparse":  # it leaves these blocks at its first text
            raise ValueError(
                f"{type(model).__name__} reads long texts by blocks of random places, and a graph cannot; load it with "
                "attention_type='original_full'"
            )
        text = model.config.get_text_config()
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            first = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            if first < text.max_position_embeddings:  # short texts, such as those of the comparison, do not show it
                raise ValueError(
                    f"{type(model).__name__} turns its rotary positions otherwise in texts of more than {first} tokens "
                    "(longrope), and a graph cannot; read and edit it in torch with attach"
                )
        if part in ("encoder", "decoder") and not encodes:
            raise ValueError(f"{type(model).__name__} has no {part}; leave out --part")
        self.part = part or default_part(model)
        self.causal = self.part is None and model.can_generate() and model.get_output_embeddings() is not None
        called = self._called()
        if self.part == "decoder":
            self.inputs = _decoder_inputs(model)
        else:
            self.inputs = inputs_of(model, called, head=has_head(model) and self.part is None, image=image)
        taken = inspect.signature(called.forward).parameters
        self._settings = {"use_cache": False} if "use_cache" in taken and not self.causal else {}
        self._first_position = _first_position(model) if self.causal and "position_ids" in taken else None
        self.layers: list[tuple[Any, Any]] = []
        self.outputs = self._named_outputs()
        if cache and self.causal:
            self.layers = _layers(model)
            self.outputs = ["logits"]
            self.outputs += [f"present.{i}.{kind}" for i in range(len(self.layers)) for kind in ("key", "value")]

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        """The outputs, of the inputs in their order and of the past, where there is one."""
        given = dict(zip([*self.inputs, "past"], tensors, strict=False))
        if not self.layers:
            result = self._result(given)
            return tuple(result[name] for name in self.outputs)
        past = given.pop("past")
        cache = DynamicCache(ddp_cache_data=[tuple(pair) for pair in past])
        result = self._result(given, past_key_values=cache, start=past[0][0].shape[2])
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)

    def _called(self) -> Any:
        if self.part in ("text", "vision"):
            found = [getattr(self.model, name, None) for name in _PART_NAMES[self.part]]
            if not any(found):
                raise ValueError(f"{type(self.model).__name__} has no {self.part} model; leave out --part")
            return next(part for part in found if part is not None)
        return self.model.get_encoder() if self.part == "encoder" else self.model

    def _result(self, given: Tensors, start: Any = 0, **past: Any) -> Any:
        if self.part == "decoder":
            states = BaseModelOutput(last_hidden_state=given["encoder_hidden_states"])
            mask = given.get("encoder_attention_mask")
            settings = {} if mask is None else {"attention_mask": mask}
            ids = given["input_ids"]
            return self.model(encoder_outputs=states, decoder_input_ids=ids, use_cache=False, **settings)
        settings = dict(self._settings)
        if self.causal:
            settings["use_cache"] = bool(past)
            if self._first_position is not None and "attention_mask" in given:
                counted = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, start:]
                settings["position_ids"] = counted + self._first_position
        return self._called()(**given, **settings, **past)

    def _named_outputs(self) -> list[str]:
        """The tensors that the model gives, by transformers' names for them."""
        example = self.example({"batch": 2, "sequence": 5})
        with torch.inference_mode():
            try:
                result = self._result(dict(zip(self.inputs, example, strict=True)))
            except Exception as error:  # the model's code raises what it likes
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{type(self.model).__name__} does not run on {', '.join(self.inputs)} alone ({reason})"
                ) from error
        left_out = (*_NOT_GIVEN, *_STATES)
        found = {name: value for name, value in dict(result).items() if name not in left_out}
        found = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        pooled = found.pop("pooler_output", None)
        # Who reads the states of a text's tokens pools them; a checkpoint without a pooler has NaN in its place.
        of_text = self.part is None and "input_ids" in self.inputs
        return [*found, *(["pooler_output"] if pooled is not None and not of_text and pooled.isfinite().all() else [])]

    def sizes(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of all dimensions that vary, where only some are given."""
        whole = {"batch": 2, "images": 3, "sequence": 5, "encoder_sequence": 6, "frames": 32, "samples": 2000} | sizes
        return whole | {"past": whole.get("past", 0)}

    def example(self, sizes: dict[str, int], seed: int = 0) -> tuple[Any, ...]:
        """Random inputs in their order; the mask is as long as past and ids together."""
        whole = self.sizes(sizes)
        made = [one.example(whole, seed + i) for i, one in enumerate(self.inputs.values())]
        if not self.layers:
            return tuple(made)
        named = dict(zip(self.inputs, made, strict=True))
        if "attention_mask" in named:
            named["attention_mask"] = torch.ones(whole["batch"], whole["past"] + whole["sequence"], dtype=torch.int64)
        return (*named.values(), self.past(whole["batch"], whole["past"]))

    def past(self, batch: int, time: int) -> list[tuple[Any, ...]]:
        """Random keys and values of a past."""
        generator = torch.Generator().manual_seed(0)
        shapes = [[(batch, t.shape[1], time, t.shape[3]) for t in pair] for pair in self.layers]
        dtype = self.model.dtype
        return [tuple(torch.randn(shape, generator=generator).to(dtype) for shape in pair) for pair in shapes]

    def dynamic_shapes(self, bounds: Mapping[str, Mapping[str, int]]) -> tuple[Any, ...]:
        """Which dimensions of the inputs vary, in the order of `example`; `min` and `max` of some by their names."""
        named = {dim for one in self.inputs.values() for dim in one.dims if isinstance(dim, str)}
        # Some models slice a table by the length of the past, so torch wants to hear that it ends with the table.
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limit = limit if limit and limit > 0 else None  # XLNet's is -1
        least = {"batch": 0, "images": 0, "past": 0}
        dims: dict[str, Any] = {
            dim: Dim(
                dim, **{"min": least.get(dim, 1), "max": limit if dim == "past" else None} | dict(bounds.get(dim, {}))
            )
            for dim in sorted({*named, "past"})
        }
        shapes = {
            name: {axis: dims[dim] for axis, dim in enumerate(one.dims) if isinstance(dim, str)}
            for name, one in self.inputs.items()
        }
        if not self.layers:
            return (tuple(shapes.values()),)
        if "attention_mask" in shapes:
            shapes["attention_mask"] = {0: dims["batch"], 1: Dim.DYNAMIC}
        pair = ({0: dims["batch"], 2: dims["past"]},) * 2
        return ((*shapes.values(), [pair] * len(self.layers)),)

    def graph_inputs(self, tensors: Sequence[Any]) -> Tensors:
        """The tensors of `example` by the names that they have in the graph."""
        named = dict(zip(self.inputs, tensors, strict=False))
        for i, (key, value) in enumerate(tensors[len(self.inputs)] if self.layers else []):
            named |= {f"past_key_values.{i}.key": key, f"past_key_values.{i}.value": value}
        return named


def has_head(model: Any) -> bool:
    """Whether a model is more than the base of its kind."""
    return getattr(model, "base_model", model) is not model


def default_part(model: Any) -> str | None:
    """The encoder of a model that writes by a decoder, or has no head; else the whole model."""
    whole = has_head(model) and not model.can_generate()
    return "encoder" if getattr(model.config, "is_encoder_decoder", False) and not whole else None


def _first_position(model: Any) -> int:
    """The position of a text's first token: 0, but behind that of padding in models of RoBERTa's kind."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    known = torch.full((1, 4), int(pad == 0))  # of a token that is no padding
    with torch.inference_mode():
        own = model(input_ids=known, use_cache=False).logits
        for first in (0, pad + 1):
            positions = torch.arange(first, first + 4)[None]
            if torch.allclose(model(input_ids=known, position_ids=positions, use_cache=False).logits, own, atol=1e-4):
                return first
    raise ValueError(f"{type(model).__name__} counts positions in its own way; export it with torch.onnx.export")


def _decoder_inputs(model: Any) -> dict[str, Input]:
    """As other exporters name them: ids of the decoder, and what the encoder gave."""
    encoder, config = model.get_encoder(), model.config.get_text_config(decoder=True)
    taken = inspect.signature(encoder.forward).parameters
    source = getattr(encoder.config, "hidden_size", None) or encoder.config.d_model
    inputs = {"input_ids": Input(("batch", "sequence"), ids(config.vocab_size))}
    inputs["encoder_hidden_states"] = floats("batch", "encoder_sequence", source, dtype=model.dtype)
    if encoder.main_input_name == "input_ids" and "attention_mask" in taken:
        ones = Input(("batch", "encoder_sequence"), lambda shape, _: torch.ones(shape, dtype=torch.int64))
        inputs["encoder_attention_mask"] = ones
    return inputs


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
            f"{type(model).__name__} keeps no keys and values [b, heads, t, width] for each layer; export it without "
            "cache, by --no-cache"
        )
    return layers
