"""Read the description of a store, `store.json`, and compare the SAE that it names."""

from pathlib import Path

from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.identity import identity
from sae_runtime.bundle.parts import WEIGHTS, read_manifest
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.store.schema import CONTEXTS, FEATURES, FORMAT_VERSION, STORE, VOCABULARY, Description


def read_description(folder: Path) -> Description:
    """The description of a store.

    Raises:
        ValueError: the folder is no store, or one of another version.

    >>> read_description(Path(store_path)).d_sae
    150
    """
    if not folder.is_dir() or identity(folder / STORE) is None:
        problem = f"holds no {STORE}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}, so it is no feature store; make one: sae-runtime features build")
    refuse_link_out(folder / STORE, folder)
    description: Description = read_file(Description, folder / STORE, version=FORMAT_VERSION, field="format_version")
    if missing := [name for name in (FEATURES, CONTEXTS, VOCABULARY) if name not in description.files]:
        raise ValueError(f"{folder / STORE} does not list {missing[0]}; build the store again")
    sizes = (description.d_sae, description.bins, description.bands, description.context, *description.per_band)
    sound = min(sizes) > 0 and len(description.per_band) == description.bands and description.tokens >= 0
    active, documents = description.active or (), {**(description.by_file or {}), **(description.by_licence or {})}
    sound = sound and len(active) <= description.d_sae + 1 and min([*active, *documents.values()], default=0) >= 0
    if not sound or description.per not in ("token", "document"):
        raise ValueError(f"{folder / STORE} has numbers that no store has; build the store again")
    return description


def check_weights(expected: str, sae: str | Path, of: Path) -> None:
    """Raise ValueError if a bundle has other weights than those that a folder's features come from.

    >>> check_weights("0" * 64, bundle_path, Path("store"))
    Traceback (most recent call last):
    ValueError: store has the features of other weights than ...; name the bundle that its features come from
    """
    found = read_manifest(Path(sae)).files[WEIGHTS].sha256
    if found != expected:
        raise ValueError(
            f"{of} has the features of other weights than {sae}; name the bundle that its features come from"
        )
