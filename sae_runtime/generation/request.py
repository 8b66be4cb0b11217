"""A request that generates, and the pieces of its answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sae_runtime.core.features import Features

Finished = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Piece:
    """One step of an answer.

    Attributes:
        id: the token that was chosen.
        text: what is certain to follow in the answer's text; "" inside a character, at an end token, and while the
            text may be the beginning of a stop string.
        features: of the tokens that were read in this step, for each SAE, if they were asked for: of the prompt with
            the first piece, then of the token that the piece before chose.
        finished: why this piece is the last one: the model wrote an end token ("end"), or a stop string ("stop"), or
            the answer has its most tokens or fills the model's context ("length"); None: it is not.

    >>> str(Piece(id=3, text=" the"))
    ' the'
    """

    id: int
    text: str
    features: Mapping[str, Features] = field(default_factory=dict)
    finished: Finished | None = None

    def __str__(self) -> str:
        return self.text
