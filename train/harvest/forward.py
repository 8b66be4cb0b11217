"""A forward pass of a model that this package did not write: what it is given, and what its errors say."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sae_runtime.train.device import first_line, memory_errors


def arguments(model: Any, ids: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model is given for tokens and the mask of those that are not padding, [batch, time].

    The decoder of a model with an encoder reads the same tokens. If it were given none, it would refuse the pass or
    shift the encoder's by itself, and no row would be that of its token.

    >>> class Encoder:
    ...     def forward(self, input_ids, attention_mask): ...
    >>> list(arguments(Encoder(), torch.tensor([[5, 6]]), torch.tensor([[True, True]])))
    ['input_ids', 'attention_mask']
    """
    mask = real.long()  # as tokenizers give it; some models compute with its numbers
    named = {"input_ids": ids, "attention_mask": mask}
    taken = inspect.signature(model.forward).parameters
    return named | {f"decoder_{name}": value for name, value in named.items() if f"decoder_{name}" in taken}


def refuse_other_input(name: str, model: Any) -> None:
    """Raise ValueError if a model reads something else than the ids of tokens, such as pictures or sound.

    >>> class Vision:
    ...     main_input_name = "pixel_values"
    >>> refuse_other_input("vit", Vision())
    Traceback (most recent call last):
    ValueError: vit is a Vision, which takes pixel_values, not text; name a model of text
    """
    wanted = model.main_input_name
    if wanted != "input_ids":
        raise ValueError(f"{name} is a {type(model).__name__}, which takes {wanted}, not text; name a model of text")


@contextmanager
def foreign_errors(model: Any) -> Iterator[None]:
    """Turn whatever a forward pass in the block raises into a sentence.

    Raises:
        MemoryError: the pass does not fit on the device.
        ValueError: the model raised something else.

    >>> with foreign_errors(torch.nn.Identity()):
    ...     torch.zeros(1) @ torch.zeros(2)
    Traceback (most recent call last):
    ValueError: Identity fails on text (...); its forward takes input, ..., so name a model that reads text alone
    """
    try:
        with memory_errors():
            yield
    except MemoryError:
        raise
    except Exception as error:  # each model raises errors of its own
        taken = ", ".join(list(inspect.signature(getattr(model, "forward", model)).parameters)[:3])
        raise ValueError(
            f"{type(model).__name__} fails on text ({first_line(error)}); its forward takes {taken}, ..., so name a "
            "model that reads text alone"
        ) from error
