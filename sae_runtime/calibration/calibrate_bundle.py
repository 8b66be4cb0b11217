"""Fit the threshold of a bundle on activations, without torch.

A bundle needs this if it has no threshold, or if another mean L0 than the fitted one is wanted.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.left_out import kept_rows, norms, rule_for, shared_out, warn_of_many
from sae_runtime.activations.stored import Activations, check_source, sample_rows
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.manifest import Allocation, LeftOut, Manifest
from sae_runtime.bundle.normalise import normalised
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.plausible import warn_of_other_rows
from sae_runtime.bundle.stats import Stats, counted
from sae_runtime.calibration.thresholds import calibration_rows, size_of_terms, slots_for, thresholds
from sae_runtime.core.arrays import EQUAL
from sae_runtime.core.progress import progress_bar

Array = NDArray[np.float32]
_LOOK = 1000  # rows that tell the mean L0 roughly
_BLOCK_ELEMENTS = 1 << 24  # pre-activations that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The asked matches a token k, the fitted threshold [d_sae], its figures on held-out rows, and the rows used.

    `left_out` counts the rows that the fit and the figures leave out; `measured_with_left_out` has the figures with
    them.
    """

    k: float
    threshold: Array
    measured: Mapping[str, float]
    rows: Mapping[str, int]
    left_out: LeftOut
    measured_with_left_out: Mapping[str, float]


class _Tally(NamedTuple):
    """The matches of each feature [d_sae] on n tokens and of each token [n], and each feature's largest activation."""

    matches: NDArray[np.int64]
    l0: NDArray[np.int64]
    largest: Array

    def with_more(self, more: "_Tally") -> "_Tally":
        """The tally of both sets of tokens."""
        l0 = np.concatenate([self.l0, more.l0])
        return _Tally(self.matches + more.matches, l0, np.maximum(self.largest, more.largest))


class _TooLarge(ValueError):
    """Features overflow float32."""

    def __init__(self) -> None:
        super().__init__(
            "activations are so large that their features are no finite numbers; were they made by the same model?"
        )


def calibrate_bundle(
    path: Path,
    activations: Activations,
    *,
    k: float | None = None,
    max_norm: float | None = None,
    out: Path | None = None,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Calibrated:
    """Fit the threshold that gives a token k active features on average, and write the bundle with it.

    Three quarters of the rows fit the threshold, the last quarter measures it (`calibration_rows`). Rows of massive
    norm do neither. Mutual choice, and an SAE without allocation, get one common threshold. Feature choice gets one for
    each feature, as in training. The new bundle has no graphs, because they hold the old threshold; `export` makes new
    ones. It keeps the labels of the features.

    Args:
        path: the bundle, with a threshold or without.
        activations: of the model and hook that the SAE was fitted on.
        k: wanted mean L0; None means as fitted.
        max_norm: rows are left out if their norm exceeds this multiple of the median norm; infinity for no limit; None
            means as the bundle has it, else 10.
        out: the bundle to write; None replaces the bundle at `path`.
        any_source: accept activations of another model or hook.
        force: replace an existing `out`.
        progress: show the progress on stderr.

    Raises:
        ValueError: the bundle cannot be read, selects by top k, or has no k and none is given; k is out of range; or
            the activations are too few, equal, have another d_in or source, are not finite or too large; or `max_norm`
            is below 1.
        FileExistsError: `out` exists and `force` is not set, or replacing the bundle would lose other files.

    >>> from sae_runtime import open_activations
    >>> made = calibrate_bundle(Path(bundle_path), open_activations(activations_path), k=4.0)
    >>> sorted(made.measured)
    ['dead', 'dead_tokens', 'fvu', 'l0', 'tokens']
    """
    bundle = bundles.read(path, calibrated=False)
    allocation, d_sae = _allocation(bundle, k), bundle.manifest.architecture.d_sae
    if out is None and path.is_symlink():
        raise FileExistsError(f"{path} is a link, which replacing the bundle would break; name the bundle itself")
    force = force or out is None
    target = out or path
    foreign = bundles.foreign_but_labels(target, path)
    Output(path=target, kind="folder", force=force, foreign=foreign).check()
    check_source(activations, bundle.manifest, any_source=any_source)
    rule = rule_for(bundle.manifest, max_norm)
    kept = kept_rows(activations, rule, progress=progress)
    warn_of_many(float((~kept).mean()), rule, activations.path)
    fitting, measuring, gaps = calibration_rows(activations, None if kept.all() else np.flatnonzero(kept))
    others = shared_out(kept, [fitting, measuring], activations.documents)
    with progress_bar((3 if kept.all() else 5) * d_sae, "features", shown=progress) as bar:
        x = activations.rows(fitting)
        _check(bundle, x, activations.path)
        threshold, sample, fit = _fitted(bundle, x, allocation, bar)
        del x  # before the other rows are read
        measured, l0, stats = _measured(bundle, activations.rows(measuring), threshold, fit, bar)
        with_left_out: dict[str, Any] = {}
        if sum(map(len, others)):
            with suppress(_TooLarge):  # of rows that are left out; then these figures are not known
                more = _tally(bundle, activations.rows(others[0]), threshold, bar)
                every = activations.rows(np.concatenate([measuring, others[1]]))
                with_left_out, _, _ = _measured(bundle, every, threshold, fit.with_more(more), bar)
    left_out = dataclasses.replace(
        bundle.manifest.left_out or LeftOut(),
        norm_multiple=rule,
        rows={name: len(part) for name, part in zip(("calibration", "validation"), others, strict=True)},
    )
    rows = {"calibration": len(fitting), "validation": len(measuring), "gaps": gaps}
    versions = {"sae-runtime": importlib.metadata.version("sae-runtime"), "numpy": np.__version__}
    calibration = {"activations": activations.path.name, "rows": rows, "versions": versions}
    manifest = dataclasses.replace(
        bundle.manifest,
        allocation=allocation,
        slots=slots_for(l0, d_sae),
        measured=measured,
        left_out=left_out,
        measured_with_left_out=with_left_out,
        provenance={**_still_true(bundle.manifest), "calibration": calibration},
    )
    weights = {name: bundle.tensor(name) for name in bundle.specs} | {"threshold": threshold}
    bundle.refuse_change(bundles.MANIFEST)  # another fit may have taken its place
    bundles.write(target, weights, manifest, sample=sample, stats=stats, labels_of=path, force=force)
    return Calibrated(
        k=allocation.k,
        threshold=threshold,
        measured=measured,
        rows=rows,
        left_out=left_out,
        measured_with_left_out=with_left_out,
    )


def _still_true(manifest: Manifest) -> dict[str, Any]:
    """What a manifest told of the SAE, without warnings that asked for this command."""
    warned = [text for text in manifest.told("warnings", list) if "sae-runtime calibrate" not in str(text)]
    rest = {name: value for name, value in manifest.provenance.items() if name != "warnings"}
    return {**rest, "warnings": warned} if warned else rest


def pre_activation_blocks(
    bundle: Bundle, x: Array, *, elements: int = _BLOCK_ELEMENTS, bar: Any = None
) -> Iterator[Array]:
    """Pre-activations z >= 0 of activations x [n, d_in] in blocks of features: float32 [features, n].

    Args:
        bundle: with the encoder; it needs no threshold.
        x: activations.
        elements: largest number of values in a block; a block holds at least one feature.
        bar: advances by the features of each block.

    Raises:
        ValueError: a pre-activation is not finite.

    >>> [block.shape for block in pre_activation_blocks(bundles.read(bundle_path), x, elements=600)]
    [(100, 6), (50, 6)]
    """
    architecture, weights = bundle.manifest.architecture, bundle.weights()
    x = _centred(bundle, x)
    step = max(elements // max(len(x), 1), 1)
    for begin in range(0, architecture.d_sae, step):
        block = slice(begin, min(begin + step, architecture.d_sae))
        with np.errstate(over="ignore", invalid="ignore"):  # the check below finds both
            z = weights["W_enc"][:, block].T @ x.T
            z += weights["b_enc"][block, None]
            np.maximum(z, 0, out=z)  # keeps NaN
        if not np.isfinite(z.max(initial=0)):
            raise _TooLarge
        yield z
        if bar is not None:
            bar.update(len(z))


def _centred(bundle: Bundle, x: Array) -> Array:
    """Activations x [n, d_in] as the encoder's product takes them."""
    return normalised(x, bundle.manifest.architecture.norm)[0] - bundle.weights()["b_pre"]


def _check(bundle: Bundle, x: Array, where: Path) -> None:
    """Refuse equal rows x [n, d_in], and warn of rows on which the present threshold gives another L0 than it did."""
    mean = x.mean(axis=0, dtype=np.float64)
    if np.square(x - mean).sum(axis=1).mean() <= EQUAL**2 * np.square(mean).sum():
        raise ValueError(f"{where}: all rows are equal, so no threshold divides them; harvest more text")
    if bundle.calibrated and bundle.manifest.architecture.selection == "threshold":
        few = x[np.random.default_rng(0).choice(len(x), min(len(x), _LOOK), replace=False)]
        l0 = _tally(bundle, few, bundle.tensor("threshold"), None).l0
        warn_of_other_rows(bundle.manifest, where, tokens=len(few), l0=float(l0.mean()))


def _fitted(bundle: Bundle, x: Array, allocation: Allocation, bar: Any) -> tuple[Array, Array, _Tally]:
    """The threshold that x fits, the new bundle's sample, and the tally of x."""
    d_sae = bundle.manifest.architecture.d_sae
    max_densities = None if allocation.quota is None else quota.max_densities(allocation.quota, allocation.k, d_sae)
    terms = size_of_terms(norms(_centred(bundle, x)), norms(bundle.tensor("W_enc").T))
    threshold = thresholds(pre_activation_blocks(bundle, x, bar=bar), len(x), allocation.k, max_densities, terms)
    tally = _tally(bundle, x, threshold, bar)
    sample = bundle.sample()
    return threshold, x[sample_rows(len(x), x.shape[1])] if sample is None else sample, tally


def _measured(
    bundle: Bundle, x: Array, threshold: Array, fit: _Tally, bar: Any
) -> tuple[dict[str, Any], NDArray[np.int64], Stats]:
    """The figures of held-out x [n, d_in], the active features of each token [n], and the use of all features.

    `fit` is the tally of the rows that fitted; the use of features is that on these and on x.
    """
    x_hat = np.tile(bundle.tensor("b_dec"), (len(x), 1))
    held_out = _tally(bundle, x, threshold, bar, x_hat)
    both = fit.with_more(held_out)
    stats = counted(both.matches, both.largest, len(both.l0))
    # A transcoder's FVU needs the activations that it reconstructs, which are not here.
    fvu = _fvu(bundle, x, x_hat) if bundle.manifest.architecture.d_out is None else None
    measured = {
        "tokens": len(x),
        **({} if fvu is None else {"fvu": fvu}),
        "l0": float(held_out.l0.mean()),
        "dead": float((both.matches == 0).mean()),
        "dead_tokens": stats.tokens,
    }
    return measured, held_out.l0, stats


def _tally(bundle: Bundle, x: Array, threshold: Array, bar: Any, x_hat: Array | None = None) -> _Tally:
    """The tally of x [n, d_in]; the decoded features are added to `x_hat`."""
    matches, l0 = np.zeros(len(threshold), np.int64), np.zeros(len(x), np.int64)
    largest, begin = np.zeros(len(threshold), np.float32), 0
    for z in pre_activation_blocks(bundle, x, bar=bar):
        block = slice(begin, begin := begin + len(z))
        active = z > threshold[block, None]
        matches[block] = active.sum(axis=1)
        l0 += active.sum(axis=0)
        z *= active
        largest[block] = z.max(axis=1, initial=0)
        if x_hat is not None:
            x_hat += z.T @ bundle.tensor("W_dec")[block]
    return _Tally(matches, l0, largest)


def _fvu(bundle: Bundle, x: Array, decoded: Array) -> float | None:
    """FVU of the decoded features, whose norm and skip are still missing; None if all rows of x are equal."""
    architecture = bundle.manifest.architecture
    _, mean, size = normalised(x, architecture.norm)
    with np.errstate(over="ignore", invalid="ignore"):  # the check below finds both
        x_hat = decoded * size + mean
        if architecture.skip:
            x_hat += x @ bundle.tensor("W_skip").T
        error, spread, whole = (
            np.einsum("nd,nd->", part, part, dtype=np.float64)
            for part in (x - x_hat, x - x.mean(axis=0, dtype=np.float64).astype(np.float32), x)
        )
        fvu = None if spread <= EQUAL**2 * whole else float(error / spread)
    if fvu is not None and not math.isfinite(fvu):
        raise _TooLarge
    return fvu


def _allocation(bundle: Bundle, k: float | None) -> Allocation:
    architecture, allocation = bundle.manifest.architecture, bundle.manifest.allocation
    if architecture.selection != "threshold":
        raise ValueError(
            f"{bundle.path} keeps {architecture.k} features of every token and needs no threshold; serve it as it is"
        )
    if k is None:
        if allocation is None:
            raise ValueError(f"{bundle.path} does not say how many features a token should have; give --k")
        return allocation
    if not 0 < k <= architecture.d_sae:
        raise ValueError(f"k must be in (0, d_sae={architecture.d_sae}], got {k:g}")
    return Allocation(kind="mutual", k=k) if allocation is None else dataclasses.replace(allocation, k=k)
