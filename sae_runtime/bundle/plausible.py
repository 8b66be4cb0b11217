"""Whether activations can be those of a bundle's SAE, judged by figures that are at hand anyway."""

import warnings
from pathlib import Path

from sae_runtime.bundle.manifest import Manifest

_TOKENS = 100  # fewer tokens tell no mean
_TIMES = 2.0  # by which a mean L0 may be larger or smaller: other text changes it by less
_VARIANCE = 0.25  # by which the explained variance may be smaller


class OtherRows(UserWarning):
    """The activations seem to come from another layer or model than those of the bundle."""


def warn_of_other_rows(manifest: Manifest, where: Path, *, tokens: int, l0: float, fvu: float | None = None) -> None:
    """Warn with `OtherRows` if an SAE's figures on activations are far from the measured ones of its manifest.

    Args:
        manifest: of the bundle; without measured figures there is no warning.
        where: the activations, for the message.
        tokens: that the figures were taken on.
        l0: their mean L0 by the served rule.
        fvu: their FVU by the served rule, if it is known.

    >>> warn_of_other_rows(sae.manifest, Path("acts"), tokens=1000, l0=3.0)  # a bundle without figures
    """
    far = far_figures(manifest, tokens=tokens, l0=l0, fvu=fvu)
    if far:
        warnings.warn(
            f"{where}: {' and '.join(far)}; are these activations of {manifest.model or 'the model'} at "
            f"{manifest.hook or 'the hook'} that the SAE was fitted on?",
            OtherRows,
            stacklevel=2,
        )


def far_figures(
    manifest: Manifest,
    *,
    tokens: int,
    l0: float,
    fvu: float | None = None,
    bounds: tuple[float, float] = (_TIMES, _VARIANCE),
) -> list[str]:
    """What is far from the measured figures of a manifest, in words.

    Args:
        manifest: of the bundle; without measured figures nothing is far.
        tokens: that the figures were taken on; of few tokens nothing is far.
        l0: their mean L0 by the served rule.
        fvu: their FVU by the served rule, if it is known.
        bounds: by how many times L0, and by how much the explained variance, may differ on such tokens.

    >>> far_figures(sae.manifest, tokens=1000, l0=3.0)  # a bundle without figures
    []
    """
    known, far = manifest.measured, list[str]()
    if "l0" not in known or tokens < _TOKENS:
        return far
    times, variance = bounds
    both = [known["l0"], manifest.measured_with_left_out.get("l0", known["l0"])]  # `extract` reads all rows
    if not min(both) / times <= l0 <= max(both) * times:
        far.append(f"mean L0 is {l0:.3g} where the bundle's is {known['l0']:.3g}")
    if fvu is not None and "fvu" in known and fvu - known["fvu"] > variance:
        far.append(f"explained variance is {1 - fvu:.3g} where the bundle's is {1 - known['fvu']:.3g}")
    return far
