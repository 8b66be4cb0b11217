"""Refuses the edits that a server's policy does not allow, of all that a plane serves."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.deployed.spliced_sae import SplicedSAE
from sae_runtime.sae import SAE
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.edit_bounds import Guard
from sae_runtime.serve.policy import Policy


class Guards:
    """The policy for all that a plane serves.

    Args:
        policy: of the server.
        loaded: what is served.
        elsewhere: names of what other processes serve by the same policy, whose entries are not for this one.

    Raises:
        ValueError: the policy does not fit what is served, so that it would refuse all edits.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> loaded = open_all([f"mine={bundle_path}"])
    >>> Guards(Policy(refuse_feature=("mine:3",)), loaded).check(loaded[0], loaded[0].sae, [Edit.ablate(3)])
    Traceback (most recent call last):
    ValueError: feature 3 may not be edited on this server; edit another one
    """

    def __init__(self, policy: Policy, loaded: Sequence[Loaded], *, elsewhere: Collection[str] = ()) -> None:
        self.policy = policy
        served = [(one, sae) for one in loaded for sae in one.saes.items()]
        every = {*elsewhere, *(name for one, (own, _) in served for name in (one.name, own))}
        self._guards = {
            (one.name, one.version, own): Guard(
                policy,
                sae.d_sae,
                names={one.name, own},
                elsewhere=every,
                largest=functools.partial(_largest_of, sae),
                labels=functools.partial(getattr, sae, "labels"),
            )
            for one, (own, sae) in served
        }
        for (name, version, own), guard in self._guards.items():
            try:
                guard.check_start()
            except ValueError as error:
                of = "" if own == name else f", SAE {own}"
                raise ValueError(f"{name} (version {version}){of}: {error}") from None

    def check(
        self, loaded: Loaded, sae: SAE | SplicedSAE, edits: Sequence[Edit], gate: NDArray[Any] | None = None
    ) -> None:
        """Raise ValueError if the policy refuses one of the edits of a request, as `Guard.check`."""
        own = loaded.name if isinstance(sae, SAE) else sae.name
        self._guards[loaded.name, loaded.version, own].check(edits, gate)


def _largest_of(sae: SAE | SplicedSAE) -> NDArray[np.float32] | None:
    return None if (stats := sae.stats) is None else stats.largest
