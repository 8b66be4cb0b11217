"""Qwen Scope: files `layer0.sae.pt` of a repository whose name tells k, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50.

The formula is that of its model cards: the k largest of x W_enc^T + b_enc, without a pre-bias.
"""

import re
from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

ARCHITECTURES = ("topk",)
_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(.+)-W\d+K-L0_(\d+)")


def recognises(path: Path) -> bool:
    """Whether the file at `path` has a name of Qwen Scope."""
    return path.is_file() and _FILE.fullmatch(path.name) is not None


def read(path: Path) -> Checkpoint:
    """The SAE in a file of Qwen Scope.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete, or neither its name nor a folder's tells its layer and k.
    """
    layer = _FILE.fullmatch(path.name)
    names = [found for folder in path.absolute().parts if (found := _REPOSITORY.search(folder))]
    if layer is None or not names:
        raise ValueError(
            f"{path} does not tell its layer and k; keep the name layer0.sae.pt, in a folder with the repository's "
            "name, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    tensors = tensors_of(path, read_torch(path))
    tensors.refuse_others("W_enc", "W_dec", "b_enc", "b_dec")
    w_enc = tensors.matrix("W_enc").T
    d_in, d_sae = w_enc.shape
    return assemble(
        path,
        "topk",
        w_enc=w_enc,
        b_enc=tensors.vector("b_enc", d_sae),
        w_dec=tensors.matrix("W_dec", d_in, d_sae).T,
        b_dec=tensors.vector("b_dec", d_in),
        selection="topk",
        k=int(names[-1][2]),
        pre_bias=False,
        model=f"Qwen/{names[-1][1]}",
        hook=f"blocks.{int(layer[1])}.hook_resid_post",
    )
