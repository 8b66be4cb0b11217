"""Facts about an SAE's training that its manifest records: its activations, held-out rows, batch and tokens."""

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.train.divided import divided
from sae_runtime.train.held_out import fingerprint


def was_trained_on(manifest: Manifest, activations: Activations) -> bool:
    """Whether these are the activations of the training, by their fingerprint, or by their name without a fingerprint.

    >>> from sae_runtime.activations.stored import open_activations
    >>> from sae_runtime.bundle import folder
    >>> was_trained_on(folder.read(bundle_path).manifest, open_activations(activations_path))
    False
    """
    known = manifest.provenance.get("fingerprint")
    if known is None:
        return bool(manifest.provenance.get("activations") == activations.path.name)
    return bool(known == fingerprint(activations))


def validation_rows(manifest: Manifest, activations: Activations) -> NDArray[np.int64] | None:
    """The rows of the part that training measured on, ascending; None if the manifest does not know, or sizes differ.

    Rows of the part that training left out for their norm are among them.

    The split depends on the activations, the share held out and the seed alone. Only the sizes of its parts are
    compared, so a copy in another type has the same held-out rows.
    """
    try:
        config, sizes = manifest.provenance["config"], manifest.provenance["rows"]
        if sum(sizes.values()) > len(activations):
            return None
        # A fit from before there was such a rule left out nothing.
        parts, left_out = divided(activations, config["holdout"], config["seed"], config.get("max_norm"))
        same = parts.counts() == {"gaps": 0, **sizes}
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):  # another program wrote the manifest
        return None
    return np.sort(np.concatenate([parts.validation, left_out.rows.validation])) if same else None


def trained_batch(manifest: Manifest) -> int:
    """Tokens that shared their matches in training; 2,048 if the manifest does not know."""
    batch = _config(manifest, "batch")
    return batch if batch is not None and batch >= 2 else 2048


def trained_tokens(manifest: Manifest) -> int | None:
    """Tokens of the training, repeats counted; None if the manifest does not know."""
    return _config(manifest, "tokens")


def _config(manifest: Manifest, name: str) -> int | None:
    value = manifest.told("config", dict).get(name)
    return value if type(value) is int and 0 < value < 1 << 53 else None
