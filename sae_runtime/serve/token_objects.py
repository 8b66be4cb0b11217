"""Tokens with their strongest features, as callers of OpenAI's protocol get them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_runtime.core.features import Features


class TokenObjects:
    """Makes an object of each token.

    Args:
        token: gives the vocabulary's name of an id; None: there is no such id.
        labels: of features, by SAE.
        most: features of a token.

    >>> shown = TokenObjects({5: "open"}.get, {"mine": {3: "files"}}, most=1)
    >>> features = Features(np.array([0, 1]), np.array([3]), np.array([2.5], np.float32), d_sae=8, shape=(1,))
    >>> shown.tokens([5], {"mine": features})
    [{'token': 'open', 'id': 5, 'features': [{'sae': 'mine', 'feature': 3, 'value': 2.5, 'label': 'files'}]}]
    """

    def __init__(self, token: Callable[[int], str | None], labels: Mapping[str, Mapping[int, str]], most: int) -> None:
        self._token, self._labels, self._most = token, labels, most

    def tokens(self, ids: Sequence[int], saes: Mapping[str, Features]) -> list[dict[str, Any]]:
        """An object for each token; the features of one SAE stand behind those of another.

        Args:
            ids: of t tokens.
            saes: features of shape (t,) by SAE.
        """
        found = [{"token": self._token(number) or "", "id": number, "features": list[Any]()} for number in ids]
        for name, features in saes.items():
            indices, values = features.top(self._most).falling_slots()
            for token, numbers, strengths in zip(found, indices.tolist(), values.tolist(), strict=True):
                token["features"] += [  # type: ignore[operator]  # it is the list
                    {"sae": name, "feature": number, "value": value, "label": self._labels[name].get(number)}
                    for number, value in zip(numbers, strengths, strict=True)
                    if value > 0
                ]
        return found
