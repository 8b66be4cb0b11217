"""Fit SAEs on activations and write them as bundles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from sae_runtime.bundle import files
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.card import with_licence
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.run import Data, fitted, names_of
from sae_runtime.train.run_options import Options, check_outputs

_COMMON = ("seed", "tokens", "batch", "holdout", "max_norm", "pool", "device")  # the settings that decide the batches


def fit(
    activations: Data, out: str | Path, config: TrainConfig, *, force: bool = False, **options: Unpack[Options]
) -> Manifest:
    """Fit an SAE and write it as a bundle, not exported yet.

    Args:
        activations: a path that `open_activations` takes, its result, or an array [n, d_in]. With a HarvestConfig the
            activations are computed when they are needed and never stored. A Source is used as it is.
        out: the bundle's folder.
        config: the settings.
        force: replace a bundle, a file of metrics and a run state that exist already.
        options: the other files that the run writes, and its progress bar; see `run_options.Options`.

    Returns:
        The manifest of the bundle.

    Raises:
        ValueError: the activations are too few, not finite or all equal, the device is not usable, or the loss
            stopped being finite.
        FileExistsError: `out` exists, and `force` is not set or it is not a bundle alone; or `metrics`, `tensorboard`
            or `run_state` exists, and `force` is not set and there is no run state that `resume` continues.
        ImportError: `tensorboard` is given and not installed.
        MemoryError: the SAE or a batch does not fit on the device.

    >>> from tempfile import TemporaryDirectory
    >>> x = np.random.default_rng(0).standard_normal((300, 8))
    >>> with TemporaryDirectory() as folder:
    ...     manifest = fit(x, f"{folder}/sae", TrainConfig(k=2, d_sae=32, tokens=640, batch=64))
    >>> manifest.architecture.d_in, manifest.architecture.d_sae, sorted(manifest.measured)[:3]
    (8, 32, ['batch', 'batch_fvu', 'batch_l0'])
    """
    out = Path(out)
    if isinstance(activations, Mapping):
        raise ValueError(f"fit makes one SAE, got {len(activations)} harvests by name; give one, or call fit_many")
    check_outputs(out, options, force=force, foreign=bundle.foreign)
    with fitted(activations, {"sae": config}, options) as result:
        if result is not None:
            ((name, (weights, manifest, stats)),) = result.saes.items()
            manifest = with_licence(manifest, options.get("licence"))
            bundle.write(out, weights, manifest, sample=result.samples[name], stats=stats, force=force)
    return bundle.read(out).manifest


def fit_many(
    activations: Data,
    out: str | Path,
    configs: Mapping[str, TrainConfig],
    *,
    force: bool = False,
    **options: Unpack[Options],
) -> dict[str, Manifest]:
    """Fit several SAEs in one pass over the activations, each as `fit` fits it alone.

    Args:
        activations: as for `fit`. With a HarvestConfig for each of several hooks, by names, one forward pass serves all
            of them, every config is fitted at every hook, and a row that one hook leaves out for its norm is left out
            for all.
        out: a folder that will hold one bundle for each name; of several hooks, one for each hook, named "hook" or,
            if there are several configs, "hook-name".
        configs: the settings by name; seed, tokens, batch, holdout, max_norm, pool and device must be the same in
            all.
        force: as for `fit`; replaces all of `out`.
        options: as for `fit`; all SAEs share one file of each kind.

    Returns:
        The manifests by name.

    Raises:
        ValueError: as for `fit`. Also if a name is not the name of a folder, or the configs differ in a setting that
            they must share.
        FileExistsError: as for `fit`.
        ImportError: as for `fit`.
        MemoryError: as for `fit`.

    >>> x = np.random.default_rng(0).standard_normal((300, 8))
    >>> configs = {f"k{k}": TrainConfig(k=k, d_sae=32, tokens=640, batch=64) for k in (2, 4)}
    >>> sorted(fit_many(x, "saes", configs)), sorted(path.name for path in Path("saes").iterdir())
    (['k2', 'k4'], ['k2', 'k4'])
    """
    out = Path(out)
    _check_together(configs)
    check_outputs(out, options, force=force, foreign=bundle.foreign_to_bundles)
    with fitted(activations, configs, options) as result:
        if result is not None:
            with files.new_folder(out, force=force, foreign=bundle.foreign_to_bundles) as folder:
                for name, (weights, manifest, stats) in result.saes.items():
                    manifest = with_licence(manifest, options.get("licence"))
                    bundle.write(folder / name, weights, manifest, sample=result.samples[name], stats=stats)
    return {name: bundle.read(out / name).manifest for name in names_of(activations, configs)}


def _check_together(configs: Mapping[str, TrainConfig]) -> None:
    """Raise unless the SAEs can share batches and their names can be names of folders."""
    if not configs:
        raise ValueError("there is nothing to fit; give one config at least")
    first, expected = next(iter(configs.items()))
    for name, config in configs.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not the name of a folder; rename that SAE")
        for field in _COMMON:
            if getattr(config, field) != getattr(expected, field):
                raise ValueError(
                    f"SAEs of one pass share {field}, got {getattr(expected, field)!r} for {first} and "
                    f"{getattr(config, field)!r} for {name}; make them equal, or fit them one by one"
                )
