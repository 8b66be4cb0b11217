"""openai/sparse_autoencoder: one file of torch.save.

The mathematics is that of `sparse_autoencoder/model.py` (arXiv:2406.04093).
"""

from pathlib import Path

import numpy as np

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.stored import Stored
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

ARCHITECTURES = ("ReLU", "TopK")
_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognises(path: Path) -> bool:
    """Whether the file at `path` holds the tensors of OpenAI's autoencoder."""
    return path.is_file() and path.suffix in (".pt", ".pth") and {"pre_bias", "latent_bias"} <= set(read_torch(path))


def read(path: Path) -> Checkpoint:
    """The SAE in a file of OpenAI's.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; OpenAI's autoencoders are one file of torch.save each, name it")
    state = read_torch(path)
    activation = state.get("activation", "ReLU")
    if activation not in ARCHITECTURES:
        raise ValueError(f"{path}: activation is {str(activation)[:40]}, expected one of {', '.join(ARCHITECTURES)}")
    tensors = tensors_of(path, {key: value for key, value in state.items() if not key.startswith("activation.")})
    w_enc = tensors.matrix("encoder.weight")
    d_sae, d_in = w_enc.shape
    if "decoder.linear.weight" in tensors:  # tied weights: the decoder is the transpose of the encoder
        w_dec = tensors.matrix("decoder.linear.weight", d_sae, d_in)
    else:
        w_dec = tensors.matrix("decoder.weight", d_in, d_sae).T
    tensors.refuse_others(
        "pre_bias", "latent_bias", "encoder.weight", "decoder.weight", "decoder.linear.weight", *_COUNTS
    )
    k = _k(path, state.get("activation_state_dict")) if activation == "TopK" else None
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="threshold" if k is None else "topk",
            k=k,
            norm="none" if k is None else "layer",  # from_state_dict decides it in this way
        ),
        weights=gather(
            path,
            w_enc=w_enc.T,
            b_enc=tensors.vector("latent_bias", d_sae),
            w_dec=w_dec,
            b_dec=tensors.vector("pre_bias", d_in),
            threshold=np.zeros(d_sae) if k is None else None,
        ),
        file=path,
        source_format=activation,
        allocation=None if k is None else Allocation(kind="token", k=float(k)),
    )


def _k(path: Path, settings: object) -> int:
    values = settings if isinstance(settings, dict) else {}
    k, after = values.get("k"), values.get("postact_fn", "ReLU")
    if isinstance(k, Stored) and k.shape == ():
        k = int(k.vector())
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"{path}: activation_state_dict does not say k, a whole number; get a sound copy")
    if after != "ReLU":
        raise ValueError(
            f"{path}: postact_fn is {str(after)[:40]}, which keeps negative features; only ReLU can be served"
        )
    return k
