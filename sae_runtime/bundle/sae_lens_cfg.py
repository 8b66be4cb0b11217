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
    architecture = manifest.architecture
    name = _architecture(manifest, calibrated=calibrated)
    if name is None:
        return None
    metadata = {"sae_lens_version": _VERSION, "hook_name": manifest.hook, "model_name": manifest.model}
    cfg: dict[str, Any] = {
        "architecture": name,
        "d_in": architecture.d_in,
        "d_sae": architecture.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": architecture.pre_bias,
        "normalize_activations": next(theirs for theirs, ours in NORMS.items() if ours == architecture.norm),
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if architecture.selection == "topk":
        cfg |= {"k": architecture.k, "rescale_acts_by_decoder_norm": False}
    if architecture.d_out is not None:
        cfg["d_out"] = architecture.d_out
        metadata["hook_name_out"] = manifest.hook_out
    return cfg


def _architecture(manifest: Manifest, *, calibrated: bool) -> str | None:
    """What SAELens calls such an SAE, or None if it has nothing like it."""
    architecture = manifest.architecture
    jumprelu = architecture.selection == "threshold" and calibrated
    if architecture.d_out is not None:
        skip = "_skip" if architecture.skip else ""
        return f"jumprelu{skip}_transcoder" if jumprelu else None
    if architecture.skip:
        return None
    return "topk" if architecture.selection == "topk" else "jumprelu" if jumprelu else None
