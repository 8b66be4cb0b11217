"""Compare a graph with the model that it was made of: padding on both sides, other sizes, three steps of a past."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.exports.model.form import Form
from sae_runtime.exports.model.inputs import Padding, Tensors, padded
from sae_runtime.exports.witness import largest_error

_TOLERANCE = 1e-3  # of the largest output, as float32 sums in another order through all layers
_STEPS = 3
_CASES: tuple[tuple[dict[str, int], Padding], ...] = (
    ({"batch": 3, "images": 2, "sequence": 9, "encoder_sequence": 4, "frames": 40, "samples": 2500}, "left"),
    ({"batch": 2, "images": 1, "sequence": 7, "encoder_sequence": 8, "frames": 48, "samples": 1900}, "right"),
    ({"batch": 1, "images": 1, "sequence": 6}, "right"),
)


def check(form: Form, session: Any) -> None:
    """Raise ValueError unless a graph gives what torch gives.

    A graph with a past reads the first tokens as a prompt and the last three one by one; torch reads all at once.
    """
    for number, (sizes, side) in enumerate(_CASES):
        _check(form, session, sizes, side, seed=10 * number)


def _check(form: Form, session: Any, sizes: dict[str, int], side: Padding, seed: int) -> None:
    layers, form.layers = form.layers, []  # torch computes without a past
    names, form.outputs = form.outputs, form.outputs[:1] if layers else form.outputs
    try:
        fill = getattr(form.model.config.get_text_config(), "pad_token_id", None)
        inputs = dict(zip(form.inputs, form.example(sizes, seed), strict=True))
        inputs = padded(inputs, side, fill)
        with torch.inference_mode():
            wanted = [_array(tensor) for tensor in _computed(form, inputs)]
    finally:
        form.layers, form.outputs = layers, names
    if layers:
        found = [_stepwise(form, session, inputs)]
    else:
        found = _run(form, session, {name: _fed(tensor) for name, tensor in inputs.items()})
    for name, want, got in zip(form.outputs, wanted, found, strict=False):
        if want.shape != got.shape:
            raise ValueError(
                f"the graph's {name} is {list(got.shape)}, torch's {list(want.shape)}; nothing was written"
            )
        real = _real(inputs, want)
        if not (error := largest_error(want[real], got[real])) <= _TOLERANCE * (1 if got.dtype == np.float32 else 30):
            raise ValueError(f"the graph's {name} is off by {error:.1e} of the largest; nothing was written")


def _stepwise(form: Form, session: Any, inputs: Tensors) -> NDArray[Any]:
    """The logits of a prompt and of the steps after it, side by side."""
    batch, time = inputs["input_ids"].shape
    past = {name: _fed(t) for name, t in form.graph_inputs([*inputs.values(), form.past(batch, 0)]).items()}
    past = {name: array for name, array in past.items() if name.startswith("past_key_values.")}
    logits = []
    ends = [0, *range(time - _STEPS, time + 1)]
    for begin, end in zip(ends, ends[1:], strict=False):
        first = {name: 0 if name == "attention_mask" else begin for name in inputs}  # the mask is of the past too
        feed = past | {name: _fed(tensor[:, first[name] : end]) for name, tensor in inputs.items()}
        outputs = dict(zip(form.outputs, _run(form, session, feed), strict=True))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        logits.append(outputs["logits"])
    return np.concatenate(logits, axis=1)


def _computed(form: Form, inputs: Tensors) -> tuple[Any, ...]:
    try:
        return tuple(form(*inputs.values()))
    except Exception as error:  # the model's code raises what it likes
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{type(form.model).__name__} fails on {shapes} ({reason}); nothing was written") from error


def _run(form: Form, session: Any, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return list(session.run(form.outputs, feed))
    except Exception as error:  # onnxruntime has an exception class for each of its status codes
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in list(feed.items())[:3])
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the graph of {type(form.model).__name__} does not run on {shapes} ({reason}); nothing was written"
        ) from error


def _real(inputs: Tensors, output: NDArray[Any]) -> Any:
    """Where an output is compared: at tokens that are no padding, where it has a row for each token."""
    mask = inputs.get("attention_mask")
    if mask is None or output.shape[:2] != tuple(mask.shape):
        return np.ones(output.shape[:1], bool)
    return _array(mask).astype(bool)


def _fed(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.numpy())


def _array(tensor: Any) -> NDArray[Any]:
    return np.asarray(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
