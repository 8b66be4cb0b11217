"""A threshold for an SAE that lacks one, or another mean L0 than it was fitted for, without torch."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_runtime import bundle as bundles
from sae_runtime import quota
from sae_runtime.activations import Activations, check_source, sample_rows
from sae_runtime.bundle import Bundle
from sae_runtime.files import check_free
from sae_runtime.manifest import Allocation
from sae_runtime.normalise import normalised

Array = NDArray[np.float32]
_ROWS = 1 << 17  # of each part; more would sharpen no figure
_PART_ELEMENTS = 1 << 26  # activations of a part that are held at once
_BLOCK_ELEMENTS = 1 << 24  # latents that are held at once
_ROUNDING = 1e-9  # of squares: rows that differ by no more are equal
_HELD_OUT = 4  # one row in so many measures what the others fitted
_TOO_LARGE = "activations are so large that their features are no finite numbers; were they made by the same model?"


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The mean L0 that was wanted, the threshold [d_sae] that gives it, and what that measured on held-out rows."""

    k: float
    theta: Array
    measured: Mapping[str, float]


def calibrate(
    path: Path,
    activations: Activations,
    *,
    k: float | None = None,
    out: Path | None = None,
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Calibrated:
    """Fit the threshold under which a token has k features on average, and write the bundle with it.

    The last quarter of the rows measures what the others fitted; no document is in both. Mutual choice, and an SAE of
    unknown allocation, get one common threshold, feature choice one for each feature, as in training. Graphs are
    dropped: they hold the old threshold, and `export` makes new ones.

    Args:
        path: the bundle, with a threshold or without.
        activations: like those that the SAE is for.
        k: wanted mean L0; None means as fitted.
        out: the bundle to write; None means to replace the one that was read.
        any_source: go on where the activations come from another model or hook than the bundle's.
        force: replace what stands at `out`.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ValueError: the bundle is none, selects by top k, or does not say what k is; k is out of range; or the
            activations are too few, of another width or source, not finite or too large.
        FileExistsError: `out` exists and `force` is not set, or the bundle to replace holds files of others.
    """
    bundle = bundles.read(path, calibrated=False)
    manifest = bundle.manifest
    allocation = _allocation(bundle, k)
    if out is None:
        _refuse_loss(bundle)
    check_free(path if out is None else out, force=force or out is None)
    check_source(activations, manifest, any_source=any_source)
    fitting, measuring = _split(activations)
    d_sae = manifest.encoder.d_sae
    cap = None if allocation.quota is None else quota.caps(allocation.quota, allocation.k, d_sae)
    # disable=None hides the bar where stderr is no terminal.
    with tqdm(total=3 * d_sae, unit="feature", unit_scale=True, disable=None if progress else True) as bar:
        x = activations.rows(fitting)
        theta = thresholds(bundle, x, allocation.k, cap, bar)
        used, _, _ = _tally(bundle, x, theta, bar, decode=False)
        sample = bundle.sample()
        if sample is None:
            sample = x[sample_rows(len(x), x.shape[1])]
        x = activations.rows(measuring)
        matches, l0, fvu = _tally(bundle, x, theta, bar, decode=bundle.manifest.encoder.d_out is None)
    measured = {
        "tokens": len(measuring),
        **({} if fvu is None else {"fvu": fvu}),  # of a transcoder nobody gave the target
        "l0": float(l0.mean()),
        "dead": float((used + matches == 0).mean()),
        "dead_tokens": len(fitting) + len(measuring),
    }
    # Wide enough for all but one token in a thousand; those are encoded again, wider.
    width = math.ceil(float(np.quantile(l0, 0.999)) / 8 + 1e-9) * 8
    calibration = {
        "activations": activations.path.name,
        "rows": {"calibration": len(fitting), "validation": len(measuring)},
        "versions": {"sae-runtime": importlib.metadata.version("sae-runtime"), "numpy": np.__version__},
    }
    manifest = dataclasses.replace(
        manifest,
        allocation=allocation,
        width=min(max(width, 8), d_sae),
        measured=measured,
        provenance={**manifest.provenance, "calibration": calibration},
    )
    weights = {name: bundle.tensor(name) for name in bundle.specs} | {"threshold": theta}
    target = path if out is None else out
    bundles.write(target, weights, manifest, sample=sample, force=force or out is None)
    return Calibrated(k=allocation.k, theta=theta, measured=measured)


def thresholds(
    bundle: Bundle, x: Array, k: float, cap: NDArray[np.float64] | None = None, bar: "tqdm[None] | None" = None
) -> Array:
    """Threshold of each feature, float32 [d_sae], finite and >= 0; served features are those with z > threshold.

    One common cut midway between the neighbouring latents, or, where there are caps, the larger of it and the feature's
    own quantile, above which it fires on a share cap of the tokens, but no more than lets it fire on a thirtieth of
    that share. The common cut brings the mean L0 on x to k.

    Args:
        bundle: with the encoder and its weights.
        x: activations [n, d_in].
        k: wanted mean L0.
        cap: largest share of the tokens of each feature, float64 [d_sae], for feature choice.
        bar: is moved on by features.

    Raises:
        ValueError: the latents are not finite.
    """
    n, d_sae = len(x), bundle.manifest.encoder.d_sae
    limit, least = (
        (quota.tokens_per_feature(c, n) for c in (cap, cap * quota.LEAST)) if cap is not None else (None, None)
    )
    own, top = np.zeros(d_sae), np.full(d_sae, np.inf)
    wanted, always = max(quota.budget(k, n), 1), 0
    pool = np.empty(0, np.float32)  # the largest between own and top: the common cut lies among them
    for block, z in _blocks(bundle, x):
        values = []
        for number, latents in enumerate(z, block.start):
            positive = latents[latents > 0]
            if limit is not None and least is not None:
                own[number] = _quantile(positive, int(limit[number]))
                if least[number]:
                    top[number] = _quantile(positive, int(least[number]))
                always += int((positive > top[number]).sum())
                positive = positive[(positive > own[number]) & (positive <= top[number])]
            values.append(positive)
        pool = _largest(np.concatenate([pool, *values]), wanted + 1)
        if bar is not None:
            bar.update(len(z))
    wanted = max(wanted - always, 1)
    pool = _largest(pool, wanted + 1)
    # With fewer positive values than the budget, all are served.
    common = float(np.partition(pool, 1)[:2].mean(dtype=np.float64)) if len(pool) > wanted else 0.0
    theta: Array = np.minimum(np.maximum(own, common), top).astype(np.float32)
    return theta


def _quantile(positive: Array, limit: int) -> float:
    """Midway between the limit-th and the next largest value; 0 where there is no next."""
    if len(positive) <= limit:
        return 0.0
    beyond = len(positive) - limit - 1
    if limit == 0:  # cut above the largest
        return float(positive.max())
    return float(np.partition(positive, (beyond, beyond + 1))[beyond : beyond + 2].mean(dtype=np.float64))


def _largest(values: Array, count: int) -> Array:
    return values if len(values) <= count else np.partition(values, len(values) - count)[-count:]


def _blocks(bundle: Bundle, x: Array) -> Iterator[tuple[slice, Array]]:
    """Latents z of blocks of features, [features, n]."""
    encoder, weights = bundle.manifest.encoder, bundle.weights()
    x = normalised(x, encoder.norm)[0] - weights["b_pre"]
    step = max(_BLOCK_ELEMENTS // len(x), 1)
    for begin in range(0, encoder.d_sae, step):
        block = slice(begin, min(begin + step, encoder.d_sae))
        with np.errstate(over="ignore", invalid="ignore"):  # told by the sum
            z = weights["W_enc"][:, block].T @ x.T
            z += weights["b_enc"][block, None]
            np.maximum(z, 0, out=z)  # which lets NaN pass
        if not np.isfinite(z.max(initial=0)):
            raise ValueError(_TOO_LARGE)
        yield block, z


def _tally(
    bundle: Bundle, x: Array, theta: Array, bar: "tqdm[None]", *, decode: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], float | None]:
    """Tokens on which each feature fires [d_sae], active features of each token [n], and FVU where it is asked for."""
    encoder, weights = bundle.manifest.encoder, bundle.weights()
    matches, l0 = np.zeros(encoder.d_sae, np.int64), np.zeros(len(x), np.int64)
    x_hat = np.tile(weights["b_dec"], (len(x), 1)) if decode else None
    for block, z in _blocks(bundle, x):
        kept = z > theta[block, None]
        matches[block] = kept.sum(axis=1)
        l0 += kept.sum(axis=0)
        if x_hat is not None:
            z *= kept
            x_hat += z.T @ weights["W_dec"][block]
        bar.update(len(z))
    if x_hat is None:
        return matches, l0, None
    _, mean, size = normalised(x, encoder.norm)
    with np.errstate(over="ignore", invalid="ignore"):  # told by the sum
        x_hat = x_hat * size + mean
        if encoder.skip:
            x_hat += x @ weights["W_skip"].T
        parts = (x - x_hat, x - x.mean(axis=0), x)
        error, spread, whole = (np.einsum("nd,nd->", d, d, dtype=np.float64) for d in parts)
        fvu = None if spread <= _ROUNDING * whole else float(error / spread)
    if fvu is not None and not math.isfinite(fvu):
        raise ValueError(_TOO_LARGE)
    return matches, l0, fvu  # equal rows have no variance to explain


def _split(activations: Activations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the rows that fit and of those that measure: the last, from the beginning of a document on."""
    n = len(activations)
    border = n - n // _HELD_OUT
    if activations.documents is not None and 0 < border < n:
        begins = np.flatnonzero(np.diff(activations.documents)) + 1
        border = int(begins[np.abs(begins - border).argmin()]) if len(begins) else n
    if min(border, n - border) < 2:  # one token has no variance
        raise ValueError(
            f"{activations.path} has {n} rows, too few to fit a threshold and to measure it on other documents; "
            "give more activations"
        )
    most = min(_ROWS, max(_PART_ELEMENTS // activations.d_in, 2))
    return _spread(0, border, most), _spread(border, n, most)


def _spread(begin: int, end: int, most: int) -> NDArray[np.int64]:
    return np.linspace(begin, end - 1, min(end - begin, most)).astype(np.int64)


def _allocation(bundle: Bundle, k: float | None) -> Allocation:
    encoder, allocation = bundle.manifest.encoder, bundle.manifest.allocation
    if encoder.selection != "threshold":
        raise ValueError(
            f"{bundle.path} keeps {encoder.k} features of every token, and so needs no threshold; serve it as it is"
        )
    if k is None and allocation is not None:
        return allocation
    if k is None:
        raise ValueError(f"{bundle.path} does not say how many features a token should have; give --k (k=)")
    if not 0 < k <= encoder.d_sae:
        raise ValueError(f"k must be in (0, d_sae={encoder.d_sae}], got {k:g}")
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
