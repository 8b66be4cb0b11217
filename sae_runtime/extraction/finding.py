"""The features of a deployed model that tell two sets of texts apart, and where in the texts they are strongest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sae_runtime.core.features import concatenate
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction.contrast import Contrast, contrast
from sae_runtime.model import Model

Pool = Literal["max", "mean", "sum"]
_AT_ONCE = 256  # texts whose tokens' features are held at a time


@dataclass(frozen=True)
class Example:
    """Where a feature is strongest in a text.

    Attributes:
        text: the number of the text, first those of about, then those of against.
        begin, end: the token's characters.
        value: the feature's activation on it.
    """

    text: int
    begin: int
    end: int
    value: float


@dataclass(frozen=True)
class Found:
    """Ranked features of an SAE, with examples.

    Attributes:
        sae: the name of the SAE.
        contrast: the ranking, with its figures.
        examples: of each ranked feature, the tokens where it is strongest, each of another text.
        texts: the texts that were compared, those of about first.
        twice: the number of texts that were left out because they had come before, in either set.
        left_out: the number of tokens that the model's limit dropped.
    """

    sae: str
    contrast: Contrast
    examples: tuple[tuple[Example, ...], ...]
    texts: tuple[str, ...]
    twice: int
    left_out: int
