"""The SAELens configuration of a bundle: with it, SAELens opens the folder and computes the same features."""

from typing import Any

from sae_runtime.bundle.manifest import Manifest

CFG = "cfg.json"
NORMS = {"none": "none", "layer_norm": "layer", "constant_norm_rescale": "length"}  # our norm, by SAELens's name
_VERSION = "6.54.12"  # the release whose folder format and mathematics the configuration follows


def sae_lens_cfg(manifest: Manifest, *, calibrated: bool) -> dict[str, Any] | None:
    """The SAELens configuration of an SAE, or None if SAELens does not compute the same.

    Args:
        manifest: of the bundle.
        calibrated: whether the SAE has its threshold, where it selects by one.

    >>> from sae_runtime import load
    >>> cfg = sae_lens_cfg(load(bundle_path).manifest, calibrated=True)
    >>> cfg["architecture"], cfg["d_in"], cfg["d_sae"]
    ('jumprelu', 24, 150)
    """
    encoder = manifest.encoder
    name = _architecture(manifest, calibrated=calibrated)
    if name is None:
        return None
    metadata = {"sae_lens_version": _VERSION, "hook_name": manifest.hook, "model_name": manifest.model}
    cfg: dict[str, Any] = {
        "architecture": name,
        "d_in": encoder.d_in,
        "d_sae": encoder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": encoder.pre_bias,
        "normalize_activations": next(theirs for theirs, ours in NORMS.items() if ours == encoder.norm),
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if encoder.selection == "topk":
        cfg |= {"k": encoder.k, "rescale_acts_by_decoder_norm": False}
    if encoder.d_out is not None:
        cfg["d_out"] = encoder.d_out
        metadata["hook_name_out"] = manifest.hook_out
    return cfg


def _architecture(manifest: Manifest, *, calibrated: bool) -> str | None:
    """What SAELens calls such an SAE, or None if it has nothing like it."""
    encoder = manifest.encoder
    jumprelu = encoder.selection == "threshold" and calibrated
    if encoder.d_out is not None:
        skip = "_skip" if encoder.skip else ""
        return f"jumprelu{skip}_transcoder" if jumprelu else None
    if encoder.skip:
        return None
    return "topk" if encoder.selection == "topk" else "jumprelu" if jumprelu else None
