"""Sees all that a plane serves, on the thread that computes or that of a caller."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.sae import SAE
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.counting import Counts
from sae_runtime.serve.errors import Refused
from sae_runtime.serve.watching import Watched, watch_bundle, watch_splice

Key = tuple[str, int, str]
"""Name and version of what is served, and the name of the SAE in it; a bundle's SAE has the bundle's name."""


class Live:
    """Watches what is served.

    Args:
        loaded: what is served.

    Attributes:
        counts: of requests and batches.
        saes: what each SAE gives.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> live = Live(open_all([f"mine={bundle_path}"]))
    >>> list(live.saes)
    [('mine', 1, 'mine')]
    """

    def __init__(self, loaded: Sequence[Loaded]) -> None:
        self.counts = Counts()
        self.saes: Mapping[Key, Watched] = {
            (one.name, one.version, own): watch_bundle(sae) if isinstance(sae, SAE) else watch_splice(sae)
            for one in loaded
            for own, sae in one.saes.items()
        }

    def saw(
        self, loaded: Loaded, x: NDArray[np.float32], indices: NDArray[np.int64], values: NDArray[np.float32]
    ) -> None:
        """Rows [n, d_in] that a bundle encoded as fitted, and their slots [n, w]."""
        self.saes[loaded.name, loaded.version, loaded.name].saw(indices, values, x)

    def saw_texts(self, loaded: Loaded, seen: Sequence[TextFeatures]) -> None:
        """Features of texts that a deployed model read."""
        for text in seen:
            own = ~text.special
            for name, features in text.saes.items():
                self.saes[loaded.name, loaded.version, name].saw_features(features, own)

    def edited(self, loaded: Loaded, sae: Any, edits: Sequence[Edit]) -> None:
        """Edits of one request that were accepted, in plain numbers."""
        own = loaded.name if isinstance(sae, SAE) else sae.name
        self.saes[loaded.name, loaded.version, own].edited(edits)

    def merged(self, loaded: Loaded, operation: str, *, requests: int, rows: int) -> None:
        """Rows or texts of several requests that were computed at once."""
        self.counts.merged(f"{loaded.name}.{operation}", requests, rows)

    def answered(
        self, loaded: Loaded, operation: str, *, seconds: float, rows: int, error: BaseException | None
    ) -> None:
        """A request that ended, on whichever thread; an error that is none of `errors` means that its caller left."""
        outcome = "ok" if error is None else type(error).__name__ if isinstance(error, Refused) else "Left"
        self.counts.finished(f"{loaded.name}.{operation}", outcome, seconds)
