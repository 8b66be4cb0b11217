"""The inputs of an exported model: their names, which of their dimensions vary, and random examples of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Tensors = dict[str, Any]
Padding = Literal["left", "right"]
OTHERS = ("pixel_values", "input_features", "input_values")  # what models read that do not read ids


@dataclass(frozen=True)
class Input:
    """One input of a graph: its dimensions, where a name varies and a number does not, and how an example is made.

    An `optional` input has the default 0.
    """

    dims: tuple[str | int, ...]
    make: Callable[[tuple[int, ...], np.random.Generator], Any]
    optional: bool = False

    def example(self, sizes: Mapping[str, int], seed: int) -> Any:
        """A random tensor of the sizes that the names of its dimensions have."""
        shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)
        return self.make(shape, np.random.default_rng(seed))


def inputs_of(model: Any, called: Any, *, head: bool, image: int | None = None) -> dict[str, Input]:
    """The inputs that a part of a model is called with, in the order of the graph.

    Args:
        model: the whole model, which knows the type of the weights.
        called: the model itself, or a part of it that is a model too.
        head: the model ends in a head, which reads pairs of texts unless it writes.
        image: height and width of a picture; None: what the config says.

    Raises:
        ValueError: it reads something else than text, pictures or sound.
    """
    config, taken = called.config, inspect.signature(called.forward).parameters
    main = called.main_input_name
    # A model of text and pictures that compares them reads both; one that writes reads text alone, without a picture.
    both = "pixel_values" in taken and "input_ids" in taken and not model.can_generate()
    inputs: dict[str, Input] = {}
    if main == "input_ids" or both:
        inputs |= _text(config.get_text_config(), taken, pairs=head and not model.can_generate())
    if both or main in OTHERS:
        name = "pixel_values" if both else main
        inputs[name] = Input(_dims(name, config, image, "images" if both else "batch"), _floats(model.dtype))
    if not inputs:
        raise ValueError(
            f"{type(called).__name__} reads {main}; export-model knows input_ids, {', '.join(OTHERS)}, so export it "
            "with torch.onnx.export"
        )
    return inputs


def _text(config: Any, taken: Mapping[str, Any], *, pairs: bool) -> dict[str, Input]:
    dims = ("batch", "sequence")
    inputs = {"input_ids": Input(dims, ids(config.vocab_size, getattr(config, "eos_token_id", None)))}
    if "attention_mask" in taken:
        inputs["attention_mask"] = Input(dims, lambda shape, _: torch.ones(shape, dtype=torch.int64))
    if "token_type_ids" in taken and (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = Input(dims, _halves, optional=not pairs)
    return inputs


def ids(size: int, end: Any = None) -> Callable[[tuple[int, ...], np.random.Generator], Any]:
    """Makes random ids of a vocabulary; each text ends in `end`, where some models look for what the text is."""

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        found = rng.integers(min(4, size - 1), size, shape)
        if isinstance(end, int) and 0 <= end < size:
            found[found == end] = size - 1 if end < size - 1 else 0
            found[:, -1:] = end
        return torch.from_numpy(found)

    return make


def _halves(shape: tuple[int, ...], _: Any) -> Any:
    """0 for the first half of each row, and 1 for the second."""
    return (torch.arange(shape[1]) >= shape[1] // 2).to(torch.int64).expand(shape).clone()


def _floats(dtype: Any) -> Callable[[tuple[int, ...], np.random.Generator], Any]:
    return lambda shape, rng: torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype)


def floats(*dims: str | int, dtype: Any) -> Input:
    """An input of random numbers."""
    return Input(dims, _floats(dtype))


def _dims(name: str, config: Any, image: int | None, batch: str) -> tuple[str | int, ...]:
    """The dimensions of pictures or of sound, as the config of their model gives them."""
    config = getattr(config, "vision_config", None) or config
    if name == "pixel_values":
        height, width = _pair(image or getattr(config, "image_size", None) or 224)
        frames = getattr(config, "num_frames", None)
        return (batch, *([frames] if frames else []), getattr(config, "num_channels", None) or 3, height, width)
    bins: Any = getattr(config, "num_mel_bins", None)
    if name == "input_values" and bins is None:
        return (batch, "samples")
    if name == "input_values":  # a spectrogram of one length, the axis of time first
        return (batch, config.max_length, bins)
    if config.model_type == "whisper":
        return (batch, bins, 2 * config.max_source_positions)  # its first convolution halves the time
    return (batch, "frames", getattr(config, "feature_projection_input_dim", None) or bins or 80)


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[-1])) if isinstance(size, list | tuple) else (int(size), int(size))


def padded(inputs: Tensors, side: Padding, fill: int | None) -> Tensors:
    """The inputs with padding of up to two tokens at one side of the first row."""
    masks = [name for name in inputs if name.endswith("attention_mask")]
    changed = dict(inputs)
    for name in masks:
        mask, of = inputs[name].clone(), name.replace("attention_mask", "input_ids")
        count = min(2, mask.shape[1] - 1)
        where = slice(0, count) if side == "left" else slice(mask.shape[1] - count, None)
        mask[:1, where] = 0
        changed[name] = mask
        if of in inputs:
            found = inputs[of].clone()
            if side == "right":  # the end of the text goes before the padding
                found[:1, -count - 1] = found[:1, -1]
            changed[of] = found if fill is None else found.masked_fill(mask == 0, fill)
    return changed
