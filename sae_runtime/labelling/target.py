"""The SAE that labels are for: of a bundle, of a deployed model, or of a feature store."""

from dataclasses import dataclass
from pathlib import Path

from sae_runtime.bundle.folder import MANIFEST
from sae_runtime.bundle.hub import SCHEME, local
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.parts import WEIGHTS, read_manifest
from sae_runtime.deployed.layout import read_layout
from sae_runtime.store.descriptions import read_description
from sae_runtime.store.schema import STORE


@dataclass(frozen=True, kw_only=True)
class Target:
    """A folder that has `labels.jsonl`, and the SAE that its features are of.

    Attributes:
        folder: the folder.
        d_sae: number of features.
        model: name of the host model, where it is known.
        hook: where the SAE reads it.
        weights: sha256 of its weights, where it is known.
    """

    folder: Path
    d_sae: int
    model: str | None
    hook: str | None
    weights: str | None = None


def find_target(path: str | Path, sae: str | None = None) -> Target:
    """The SAE of a bundle, a deployed model or a store.

    Args:
        path: the folder, or a deployed model's graph.
        sae: its name, where a model has several.

    Raises:
        OSError: the path does not exist or may not be read.
        ValueError: it is none of these, or is on the Hub; the model has no such SAE, or has several; or its bundle is
            not there.

    >>> find_target(bundle_path).d_sae
    150
    """
    if str(path).startswith(SCHEME):
        raise ValueError(f"{path} is on the Hub, where nothing can be written; name a folder on this machine")
    found = local(path)
    if (found / MANIFEST).is_file():
        if sae is not None:
            raise ValueError(f"{path} is the bundle of one SAE; leave out --sae")
        return _of(found, read_manifest(found))
    if (found / STORE).is_file():
        if sae is not None:
            raise ValueError(f"{path} is the store of one SAE; leave out --sae")
        store = read_description(found)
        return Target(folder=found, d_sae=store.d_sae, model=store.model, hook=store.hook, weights=store.weights_sha256)
    try:
        layout = read_layout(found)
    except FileNotFoundError:
        raise ValueError(f"{path} is no store, bundle or deployed model; name the folder of one") from None
    if not layout.splices:
        raise ValueError(f"{path} is a model without SAEs; splice one into it, or name a bundle")
    if sae is None and len(layout.splices) > 1:
        raise ValueError(f"{path} has several SAEs; choose one of {', '.join(layout.splices)} by --sae")
    name = next(iter(layout.splices)) if sae is None else sae
    if name not in layout.splices:
        raise ValueError(f"{path} has no SAE {name!r}; it has {', '.join(layout.splices)}")
    if name not in layout.bundles:
        raise ValueError(f"the bundle of {name}, which has the labels, is not in {path}; splice it again")
    return _of(layout.bundles[name], read_manifest(layout.bundles[name]))


def _of(folder: Path, manifest: Manifest) -> Target:
    return Target(
        folder=folder,
        d_sae=manifest.architecture.d_sae,
        model=manifest.model,
        hook=manifest.hook,
        weights=manifest.files[WEIGHTS].sha256 if WEIGHTS in manifest.files else None,
    )
