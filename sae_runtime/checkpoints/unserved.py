"""Checkpoints that are known and cannot be served: the refusal says what they are."""

import re
from pathlib import Path

from sae_runtime.checkpoints.folder import home

# What a folder of the kind holds, as patterns of file names, and why no bundle computes it.
_KINDS = (
    (
        ("conf.yaml", r"latest_ckpt\.safetensors"),
        "a temporal SAE (canrager/temporalSAEs), which reads other tokens too",
    ),
    (
        (r"W_enc_\d+\.safetensors", r"W_dec_\d+\.safetensors"),
        "a cross-layer transcoder (circuit-tracer), which writes to several layers at once",
    ),
)


def refuse(path: Path) -> None:
    """Raise ValueError if the checkpoint at `path` is of a kind that cannot be served.

    >>> Path("clt").mkdir()
    >>> for name in ("W_enc_0.safetensors", "W_dec_0.safetensors"):
    ...     Path("clt", name).touch()
    >>> refuse(Path("clt"))
    Traceback (most recent call last):
    ValueError: clt is a cross-layer transcoder (circuit-tracer), which writes to several layers at once
    """
    names = [file.name for file in home(path).iterdir()]
    for patterns, kind in _KINDS:
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in patterns):
            raise ValueError(f"{path} is {kind}")
