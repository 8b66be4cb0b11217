"""The features of a text's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate
from sae_runtime.text.tokenizer import Tokenizer
from sae_runtime.text.tokens import Tokens

How = Literal["max", "mean", "sum"]


class TextFeatures:
    """The tokens of a text, and the features of each.

    A text that is longer than the model reads has several windows, each with the special tokens around it. A token of
    the text is in one of them.

    Attributes:
        text: the text.
        ids: of its tokens, int64 [t].
        offsets: the first character of each token and the one after its last, int64 [t, 2]; (0, 0) for special ones.
        special: whether the token is none of the text's own, [t].
        windows: the number of each token's window, int64 [t].
        saes: the features of the tokens by the name of the SAE, each of shape (t,).
    """

    def __init__(
        self, text: str, windows: Sequence[Tokens], saes: Mapping[str, Sequence[Features]], tokenizer: Tokenizer
    ) -> None:
        self.text = text
        self._tokenizer: Tokenizer | None = tokenizer
        self._tokens: list[str] = []
        if len(windows) == 1:
            (one,) = windows
            self.ids, self.offsets, self.special = one.ids, one.offsets, ~one.kept
        else:
            self.ids, self.offsets = (np.concatenate([getattr(w, n) for w in windows]) for n in ("ids", "offsets"))
            self.special = ~np.concatenate([window.kept for window in windows])
        self.windows = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
        self.saes = {
            name: parts[0] if len(parts) == 1 else concatenate(parts, parts[0].d_sae, (len(self.ids),))
            for name, parts in saes.items()
        }

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return f"TextFeatures({shown!r}, {len(self.ids):,} tokens, {', '.join(self.saes)})"

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": self.tokens, "_tokenizer": None}

    @property
    def tokens(self) -> list[str]:
        """The name of each token in the vocabulary, such as "##ing"."""
        if self._tokenizer is not None:
            self._tokens = [self._tokenizer.token(number) or "" for number in self.ids.tolist()]
            self._tokenizer = None
        return self._tokens

    @property
    def features(self) -> Features:
        """The features of the only SAE.

        Raises:
            ValueError: there are several.
        """
        return self.saes[self._only(None)]

    def top(self, n: int, *, sae: str | None = None) -> Features:
        """The n strongest features of each token.

        Args:
            n: number of features.
            sae: the SAE's name; None: the only one.

        Raises:
            ValueError: there is no such SAE, or there are several.
        """
        return self.saes[self._only(sae)].top(n)

    def pooled(self, how: How = "max", *, sae: str | None = None) -> NDArray[np.float32]:
        """One number for each feature over the text's own tokens, without special ones, float32 [d_sae].

        Args:
            how: "max", "mean" or "sum"; each is 0 for a text without tokens.
            sae: the SAE's name; None: the only one.

        Raises:
            ValueError: there is no such way or no such SAE, or there are several SAEs.
        """
        if how not in ("max", "mean", "sum"):
            raise ValueError(f"features are pooled by max, mean or sum, got {how!r}")
        features = self.saes[self._only(sae)]
        own = np.repeat(~self.special, np.diff(features.indptr))
        total = np.zeros(features.d_sae)
        (np.maximum if how == "max" else np.add).at(total, features.indices[own], features.values[own])
        tokens = max(int((~self.special).sum()), 1) if how == "mean" else 1
        return (total / tokens).astype(np.float32)

    def _only(self, sae: str | None) -> str:
        if sae is not None and sae in self.saes:
            return sae
        if sae is None and len(self.saes) == 1:
            return next(iter(self.saes))
        raise ValueError(f"the model has the SAEs {', '.join(self.saes)}; name one of them, got {sae!r}")
