"""A request that generates, and the pieces of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features
from sae_runtime.core.gates import Gate, reached
from sae_runtime.generation.sampling import Sampler, Sampling
from sae_runtime.generation.stopping import Stopping
from sae_runtime.text.streaming import Stream
from sae_runtime.text.tokens import Tokens

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


Edits = Mapping[str, Sequence[Edit]]
"""The edits of each SAE, in plain numbers, as `core.edits.resolved` gives them."""


class Request:
    """A prompt, and how it goes on.

    Attributes:
        tokens: of the prompt.
        edits: may be changed between two steps; the tokens that are read from then on get the new ones.
        gate: which tokens the edits reach.
        most: the most tokens of the answer.
        features: whether the pieces have features.
        ids: of the answer, so far.
    """

    def __init__(
        self,
        tokens: Tokens,
        stream: Stream,
        *,
        edits: Edits | None = None,
        gate: Gate = "all",
        sampling: Sampling | None = None,
        most: int = 256,
        stop: Sequence[str] = (),
        features: bool = False,
    ) -> None:
        """A request of a prompt that has a token at least.

        Args:
            tokens: of the prompt.
            stream: makes text of the answer's tokens.
            edits: the first ones.
            gate: as `core.gates.as_gate` gives it.
            sampling: how tokens are chosen; None: always the most likely one.
            most: the most tokens of the answer, from 1 on.
            stop: strings that end the answer and are not shown.
            features: give features with each piece.
        """
        self.tokens, self.edits, self.gate = tokens, edits or {}, gate
        self.most, self.features = most, features
        self.sampler, self.stopping, self.stream = Sampler(sampling or Sampling()), Stopping(stop), stream
        self.ids: list[int] = []
        self.special: list[bool] = []  # whether each of the ids is a special token

    def __len__(self) -> int:
        return len(self.tokens) + len(self.ids)

    def all_ids(self) -> NDArray[np.int64]:
        """Ids of the prompt and of the answer so far."""
        return np.concatenate([self.tokens.ids, np.array(self.ids, np.int64)])

    def gates(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of its tokens the edits reach, from number `begin` to `end`, which may be the answer's."""
        if self.gate == "all":
            return np.ones(end - begin, bool)
        prompt = len(self.tokens)
        special = np.concatenate([~self.tokens.kept, np.array(self.special, bool)])
        offsets = np.concatenate([self.tokens.offsets, np.zeros((len(self.ids), 2), np.int64)])
        part = slice(begin, end)
        return reached(self.gate, np.arange(begin, end), prompt=prompt, special=special[part], offsets=offsets[part])

    def text_of(self, id: int, finished: Finished | None) -> tuple[str, Finished | None]:
        """What may be shown after a token was chosen, and why the answer ends with it."""
        text = "" if finished == "end" else self.stopping.push(self.stream.push(id))
        if self.stopping.found:
            return text, "stop"
        if finished is not None:
            text += self.stopping.push(self.stream.end())
            if self.stopping.found:
                return text, "stop"
            text += self.stopping.rest()
        return text, finished
