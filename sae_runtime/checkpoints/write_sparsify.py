"""A bundle as a folder of EleutherAI sparsify, which `SparseCoder.load_from_disk` opens.

The mathematics is that of `sparsify/sparse_coder.py` 1.3.
"""

import json
from pathlib import Path

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.files import check_free, new_folder
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.tensors import save_tensors
from sae_runtime.checkpoints.outgoing import encoder_bias, refuse_normalised
from sae_runtime.checkpoints.sparsify import CFG, WEIGHTS


def write(bundle_path: Path, out: Path, *, force: bool = False) -> None:
    """Write cfg.json and sae.safetensors, with which sparsify computes what the bundle computes.

    Args:
        bundle_path: a bundle of token choice (TopK) or groupmax; a transcoder must have d_out equal to d_in.
        out: the folder to make; sparsify expects the hook's name where it loads several.
        force: replace what exists there.

    Raises:
        BundleError: the folder is no valid bundle.
        FileExistsError: `out` exists and `force` is not set.
        ValueError: sparsify computes nothing like it; the message says what.
    """
    check_free(out, force=force)
    bundle = bundles.read(bundle_path)
    _refuse_unlike(bundle)
    architecture, weights = bundle.manifest.architecture, bundle.weights()
    transcode = architecture.d_out is not None  # sparsify subtracts b_dec from the input unless it transcodes
    tensors = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": encoder_bias(bundle, pre_bias=not transcode),
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    if architecture.skip:
        tensors["W_skip"] = weights["W_skip"]
    cfg = {
        "activation": architecture.selection,
        "num_latents": architecture.d_sae,
        "k": architecture.k,
        "normalize_decoder": False,  # it would change the rows in further training
        "multi_topk": False,
        "skip_connection": architecture.skip,
        "transcode": transcode,
        "d_in": architecture.d_in,
    }
    with new_folder(out, force=force) as folder:
        save_tensors(folder / WEIGHTS, tensors)
        (folder / CFG).write_text(json.dumps(cfg, indent=2) + "\n")


def _refuse_unlike(bundle: Bundle) -> None:
    architecture = bundle.manifest.architecture
    if architecture.selection == "threshold":
        raise ValueError(
            f"{bundle.path} is served by a threshold, and sparsify knows top k and groupmax only; "
            "convert it with --to dictionary-learning, or open it in SAELens"
        )
    refuse_normalised(bundle, "sparsify")
    if architecture.d_x_hat != architecture.d_in:
        raise ValueError(
            f"{bundle.path} makes activations {architecture.d_out} wide of those {architecture.d_in} wide, and "
            "sparsify knows one width; serve the bundle itself"
        )
