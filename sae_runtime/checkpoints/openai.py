"""openai/sparse_autoencoder: one file of torch.save.

The formulas are those of `sparse_autoencoder/model.py` (arXiv:2406.04093).
"""

from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.stored import Stored
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

ARCHITECTURES = ("ReLU", "TopK")
_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognises(path: Path) -> bool:
    """Whether the file at `path` holds the tensors of OpenAI's autoencoder."""
    return path.is_file() and path.suffix in (".pt", ".pth") and {"pre_bias", "latent_bias"} <= set(read_torch(path))


def read(path: Path) -> Checkpoint:
    """The SAE in a file of OpenAI.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; an autoencoder of OpenAI is one file of torch.save, name it")
    state = read_torch(path)
    activation = state.get("activation", "ReLU")
    if activation not in ARCHITECTURES:
        raise ValueError(f"{path}: activation is {str(activation)[:40]}, expected one of {', '.join(ARCHITECTURES)}")
    tensors = tensors_of(path, {key: value for key, value in state.items() if not key.startswith("activation.")})
    w_enc = tensors.matrix("encoder.weight").T
    d_in, d_sae = w_enc.shape
    names = ("decoder.linear.weight", "decoder.weight")  # the first if weights are tied: it is the encoder's matrix
    tensors.refuse_others("pre_bias", "latent_bias", "encoder.weight", *names, *_COUNTS)
    topk = activation == "TopK"
    return assemble(
        path,
        activation,
        w_enc=w_enc,
        b_enc=tensors.vector("latent_bias", d_sae),
        w_dec=tensors.either(*names, d_sae, d_in),
        b_dec=tensors.vector("pre_bias", d_in),
        threshold=None if topk else 0.0,
        selection="topk" if topk else "threshold",
        k=_k(path, state.get("activation_state_dict")) if topk else None,
        norm="layer" if topk else "none",  # from_state_dict decides it by the activation too
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
