"""A threshold for a bundle that lacks one, or for another mean L0 than the bundle was fitted for, without torch."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, check_source, sample_rows
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import quota
from sae_runtime.bundle.files import check_free
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.bundle.normalise import normalised
from sae_runtime.calibration.thresholds import calibration_rows, slots_for, thresholds
from sae_runtime.core.progress import progress_bar

Array = NDArray[np.float32]
_BLOCK_ELEMENTS = 1 << 24  # pre-activations that are held at once
_ROUNDING = 1e-9  # of squares: rows that differ by less are equal
_TOO_LARGE = "activations are so large that their features are no finite numbers; were they made by the same model?"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The mean L0 that was wanted, the threshold [d_sae] that gives it, and what it measures on held-out rows."""

    k: float
    threshold: Array
    measured: Mapping[str, float]


def calibrate_bundle(
    path: Path,
    activations: Activations,
    *,
    k: float | None = None,
    out: Path | None = None,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Calibrated:
    """Fit the threshold under which a token has k active features on average, and write the bundle with it.

    The last quarter of the rows measures what the others fitted; no document is in both. Mutual choice, and an SAE of
    unknown allocation, get one common threshold. Feature choice gets one for each feature, as in training. The new
    bundle has no graphs, since they hold the old threshold; `export` makes new ones.

    Args:
        path: the bundle, with a threshold or without.
        activations: like those that the SAE is for.
        k: wanted mean L0; None means as fitted.
        out: the bundle to write; None means to replace the one that was read.
        any_source: go on where the activations come from another model or hook than the bundle's.
        force: replace what stands at `out`.
        progress: show the progress on stderr.

    Raises:
        ValueError: the bundle cannot be read, selects by top k, or does not say what k is; k is out of range; or the
            activations are too few, of another width or source, not finite or too large.
        FileExistsError: `out` exists and `force` is not set, or the folder to replace holds files that are not the
            bundle's.

    >>> from sae_runtime import open_activations
    >>> made = calibrate_bundle(Path(bundle_path), open_activations(activations_path), k=4.0)
    >>> sorted(made.measured)
    ['dead', 'dead_tokens', 'fvu', 'l0', 'tokens']
    """
    bundle = bundles.read(path, calibrated=False)
    allocation = _allocation(bundle, k)
    if out is None:
        _refuse_loss(bundle)
    target = path if out is None else out
    check_free(target, force=force or out is None)
    check_source(activations, bundle.manifest, any_source=any_source)
    fitting, measuring = calibration_rows(activations)
    with progress_bar(3 * bundle.manifest.architecture.d_sae, "features", shown=progress) as bar:
        fit = _fitted(bundle, activations, fitting, allocation, bar)
        measured, l0 = _measured(bundle, activations.rows(measuring), fit, bar)
    rows = {"calibration": len(fitting), "validation": len(measuring)}
    manifest = dataclasses.replace(
        bundle.manifest,
        allocation=allocation,
        slots=slots_for(l0, bundle.manifest.architecture.d_sae),
        measured=measured,
        provenance={**bundle.manifest.provenance, "calibration": _provenance(activations, rows)},
    )
    weights = {name: bundle.tensor(name) for name in bundle.specs} | {"threshold": fit.threshold}
    bundles.write(target, weights, manifest, sample=fit.sample, force=force or out is None)
    return Calibrated(k=allocation.k, threshold=fit.threshold, measured=measured)


def pre_activation_blocks(
    bundle: Bundle, x: Array, *, elements: int = _BLOCK_ELEMENTS, bar: Any = None
) -> Iterator[Array]:
    """Pre-activations z >= 0 of activations x [n, d_in], block after block of the features: float32 [features, n].

    Args:
        bundle: with the encoder; it needs no threshold.
        x: activations.
        elements: numbers in a block at most, but for a block of one feature.
        bar: moves on by features.

    Raises:
        ValueError: a pre-activation is not finite.
    """
    architecture, weights = bundle.manifest.architecture, bundle.weights()
    x = normalised(x, architecture.norm)[0] - weights["b_pre"]
    step = max(elements // len(x), 1)
    for begin in range(0, architecture.d_sae, step):
        block = slice(begin, min(begin + step, architecture.d_sae))
        with np.errstate(over="ignore", invalid="ignore"):  # the check below finds both
            z = weights["W_enc"][:, block].T @ x.T
            z += weights["b_enc"][block, None]
            np.maximum(z, 0, out=z)  # keeps NaN
        if not np.isfinite(z.max(initial=0)):
            raise ValueError(_TOO_LARGE)
        yield z
        if bar is not None:
            bar.update(len(z))


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """The threshold, on how many of how many tokens it makes each feature active, and some of the activations."""

    threshold: Array
    matches: NDArray[np.int64]
    tokens: int
    sample: Array


def _fitted(
    bundle: Bundle, activations: Activations, rows: NDArray[np.int64], allocation: Allocation, bar: Any
) -> _Fit:
    d_sae = bundle.manifest.architecture.d_sae
    max_densities = None if allocation.quota is None else quota.max_densities(allocation.quota, allocation.k, d_sae)
    x = activations.rows(rows)
    threshold = thresholds(pre_activation_blocks(bundle, x, bar=bar), len(x), allocation.k, max_densities)
    matches, _, _ = _tally(bundle, x, threshold, bar, decode=False)
    sample = bundle.sample()
    if sample is None:
        sample = x[sample_rows(len(x), x.shape[1])]
    return _Fit(threshold=threshold, matches=matches, tokens=len(x), sample=sample)


def _measured(bundle: Bundle, x: Array, fit: _Fit, bar: Any) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """What the manifest says of held-out activations x [n, d_in], and the active features of each token [n]."""
    # A transcoder's FVU needs the activations that it reconstructs, which are not at hand.
    matches, l0, fvu = _tally(bundle, x, fit.threshold, bar, decode=bundle.manifest.architecture.d_out is None)
    measured = {
        "tokens": len(x),
        **({} if fvu is None else {"fvu": fvu}),
        "l0": float(l0.mean()),
        "dead": float((fit.matches + matches == 0).mean()),
        "dead_tokens": fit.tokens + len(x),
    }
    return measured, l0


def _provenance(activations: Activations, rows: Mapping[str, int]) -> dict[str, Any]:
    versions = {"sae-runtime": importlib.metadata.version("sae-runtime"), "numpy": np.__version__}
    return {"activations": activations.path.name, "rows": rows, "versions": versions}


def _tally(
    bundle: Bundle, x: Array, threshold: Array, bar: Any, *, decode: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], float | None]:
    """Tokens that each feature is active on [d_sae], active features of each token [n], and FVU if `decode` is set."""
    architecture, weights = bundle.manifest.architecture, bundle.weights()
    matches, l0 = np.zeros(architecture.d_sae, np.int64), np.zeros(len(x), np.int64)
    x_hat = np.tile(weights["b_dec"], (len(x), 1)) if decode else None
    start = 0
    for z in pre_activation_blocks(bundle, x, bar=bar):
        block = slice(start, start + len(z))
        start += len(z)
        kept = z > threshold[block, None]
        matches[block] = kept.sum(axis=1)
        l0 += kept.sum(axis=0)
        if x_hat is not None:
            z *= kept
            x_hat += z.T @ weights["W_dec"][block]
    if x_hat is None:
        return matches, l0, None
    _, mean, size = normalised(x, architecture.norm)
    with np.errstate(over="ignore", invalid="ignore"):  # the check below finds both
        x_hat = x_hat * size + mean
        if architecture.skip:
            x_hat += x @ weights["W_skip"].T
        parts = (x - x_hat, x - x.mean(axis=0), x)
        error, spread, whole = (np.einsum("nd,nd->", d, d, dtype=np.float64) for d in parts)
        fvu = None if spread <= _ROUNDING * whole else float(error / spread)  # equal rows have no variance to explain
    if fvu is not None and not math.isfinite(fvu):
        raise ValueError(_TOO_LARGE)
    return matches, l0, fvu


def _allocation(bundle: Bundle, k: float | None) -> Allocation:
    architecture, allocation = bundle.manifest.architecture, bundle.manifest.allocation
    if architecture.selection != "threshold":
        raise ValueError(
            f"{bundle.path} keeps {architecture.k} features of every token and needs no threshold; serve it as it is"
        )
    if k is None and allocation is not None:
        return allocation
    if k is None:
        raise ValueError(f"{bundle.path} does not say how many features a token should have; give --k")
    if not 0 < k <= architecture.d_sae:
        raise ValueError(f"k must be in (0, d_sae={architecture.d_sae}], got {k:g}")
    return Allocation(kind="mutual", k=k) if allocation is None else dataclasses.replace(allocation, k=k)


def _refuse_loss(bundle: Bundle) -> None:
    """Raise where replacing a bundle's folder would lose what is not the bundle's, or alter a cache."""
    mine = {bundles.MANIFEST, bundles.DERIVED, *bundle.manifest.files, *bundle.manifest.graphs}
    others = sorted(path.name for path in bundle.path.iterdir() if path.name not in mine)
    if others:
        raise FileExistsError(
            f"{bundle.path} also holds {others[0]}, which would be lost; write another bundle with -o (out=)"
        )
    if bundle.path.is_symlink() or any((bundle.path / name).is_symlink() for name in mine):
        raise FileExistsError(f"{bundle.path} holds links, as a Hub cache does; write another bundle with -o (out=)")
