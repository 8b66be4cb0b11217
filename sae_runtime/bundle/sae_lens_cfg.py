"""The SAELens configuration of a bundle, with which SAELens opens the folder and computes the same features."""

from pathlib import Path
from typing import Any

from sae_runtime.bundle import manifest as manifests
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.same_source import public_name
from sae_runtime.bundle.typed_json import read_file

CFG = "cfg.json"
NORMS = {"none": "none", "layer_norm": "layer", "constant_norm_rescale": "length"}  # SAELens's name -> our norm
_VERSION = "6.54.12"  # the release whose folder format and mathematics the configuration follows


def sae_lens_cfg(manifest: Manifest, *, calibrated: bool) -> dict[str, Any] | None:
    """The SAELens configuration of an SAE, or None if SAELens does not compute the same.

    Args:
        manifest: describes the SAE.
        calibrated: whether the SAE has all that it selects by, as `Bundle.calibrated` tells.

    >>> from sae_runtime import load
    >>> cfg = sae_lens_cfg(load(bundle_path).manifest, calibrated=True)
    >>> cfg["architecture"], cfg["d_in"], cfg["d_sae"]
    ('jumprelu', 24, 150)
    """
    architecture = manifest.architecture
    name = _architecture(manifest, calibrated=calibrated)
    if name is None:
        return None
    metadata = {
        "sae_lens_version": _VERSION,
        "hook_name": manifest.transformer_lens_hook or manifest.hook,
        "model_name": manifest.model and public_name(manifest.model),
    }
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


def check_cfg(folder: Path, manifest: Manifest, *, calibrated: bool) -> None:
    """Raise ValueError if the SAELens configuration in a bundle's folder differs from the manifest."""
    expected = sae_lens_cfg(manifest, calibrated=calibrated)
    if (expected is None) == (CFG in manifest.files):
        raise ValueError(
            f"{folder / manifests.FILE} {'lists' if expected is None else 'does not list'} {CFG}; make the bundle again"
        )
    if expected is None:
        return
    try:
        cfg = read_file(dict[str, Any], folder / CFG)
    except ValueError as error:
        raise ValueError(f"{error}; copy it again") from error
    for key, value in expected.items():
        if key not in ("metadata", "device") and cfg.get(key) != value:
            raise ValueError(f"{folder / CFG} and {manifests.FILE} disagree on {key}; copy the bundle again")


def _architecture(manifest: Manifest, *, calibrated: bool) -> str | None:
    """SAELens's name of the architecture, or None if SAELens has no such architecture."""
    architecture = manifest.architecture
    jumprelu = architecture.selection == "threshold" and calibrated
    if architecture.d_out is not None:
        skip = "_skip" if architecture.skip else ""
        return f"jumprelu{skip}_transcoder" if jumprelu else None
    if architecture.skip:
        return None
    return "topk" if architecture.selection == "topk" else "jumprelu" if jumprelu else None
