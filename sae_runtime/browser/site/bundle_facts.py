"""What a site says of an SAE by its bundle: how it was fitted and what it explains."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.browser.site.densities import ranks_of
from sae_runtime.browser.site.shown import short, shorts
from sae_runtime.bundle import quota
from sae_runtime.bundle.evaluation_file import Zipf, law_by_rank
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.parts import WEIGHTS, read_manifest


@dataclass(frozen=True)
class Known:
    """The manifest of a bundle, and where it lies."""

    path: Path
    manifest: Manifest


def by_weights(bundles: Iterable[Path]) -> dict[str, Known]:
    """The manifests of bundles by the sha256 of their weights.

    >>> list(by_weights([Path(bundle_path)]).values())[0].manifest.allocation.kind
    'mutual'
    """
    found = {}
    for path in bundles:
        manifest = read_manifest(path)
        found[manifest.files[WEIGHTS].sha256] = Known(path, manifest)
    return found


def allocation(manifest: Manifest | None) -> str | None:
    """What competes for matches, and how many matches a token were asked for.

    >>> allocation(sae.manifest)
    'mutual choice, k 6'
    """
    if manifest is None or manifest.allocation is None:
        return None
    return f"{manifest.allocation.kind} choice, k {manifest.allocation.k:g}"


def measured(manifest: Manifest | None) -> dict[str, Any] | None:
    """What the bundle's makers measured on held-out activations.

    >>> measured(None)
    """
    if manifest is None or not manifest.measured:
        return None
    of = manifest.measured
    fvu = of.get("fvu")
    explained = None if fvu is None else short(1 - fvu)
    return {"explained_variance": explained, **{name: short(of.get(name)) for name in ("fvu", "l0", "dead")}}


def law(density: NDArray[np.float64], manifest: Manifest | None) -> dict[str, Any] | None:
    """The density that a law gives each rank: feature choice's own quota, else the Zipf law that fits the densities.

    Args:
        density: of each feature, [d_sae].
        manifest: of the bundle, if it is known.

    Returns:
        Ranks, values and a sentence; None where too few features are active for a fit.

    >>> law(np.array([0.5, 0.25]), None)
    """
    asked = None if manifest is None else manifest.allocation
    if asked is not None and asked.quota is not None and asked.k <= len(density):
        values = quota.quotas(asked.quota, asked.k, len(density))
        what = f"the quota of feature choice: what the SAE was fitted to, of {asked.k:g} matches a token"
    else:
        if np.count_nonzero(density) < quota.FIT_FEATURES:
            return None
        exponent, offset, r_squared = quota.fit(density)
        values = law_by_rank(Zipf(exponent=exponent, offset=offset, r_squared=r_squared), density)
        what = f"Zipf law that fits these densities: (rank + {offset:.3g})^-{exponent:.3g}, R² {r_squared:.3f}"
    ranks = ranks_of(len(values))
    return {"rank": ranks.tolist(), "value": shorts(values[ranks - 1].tolist()), "what": what}
