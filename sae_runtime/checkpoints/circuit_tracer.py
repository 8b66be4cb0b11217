"""Transcoders of circuit-tracer: `layer_0.safetensors`, and config.yaml for all layers (mwhanna's and others).

The formula is that of its `SingleLayerTranscoder`: ReLU, or JumpReLU where there is a threshold, of x W_enc^T + b_enc.
"""

import re
from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.folder import find
from sae_runtime.checkpoints.safetensors_file import open_safetensors

ARCHITECTURES = ("transcoder", "skip transcoder", "jumprelu transcoder", "jumprelu skip transcoder")
CFG = "config.yaml"
_FILE = re.compile(r"(?:.*_)?(\d+)\.safetensors")
_THRESHOLD = "activation_function.threshold"
_TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_LARGEST_CONFIG = 1 << 20


def recognises(path: Path) -> bool:
    """Whether the file at `path` is named after a layer and holds the tensors of a transcoder."""
    if not path.is_file() or _FILE.fullmatch(path.name) is None:
        return False
    return open_safetensors(path).names() - {"W_skip", _THRESHOLD} == _TENSORS


def read(path: Path) -> Checkpoint:
    """The transcoder of one layer.

    Raises:
        ValueError: it is damaged or incomplete.
    """
    layer = _FILE.fullmatch(path.name)
    if not path.is_file() or layer is None:
        raise ValueError(f"{path} is no file of one layer, such as layer_0.safetensors; name that file")
    tensors = open_safetensors(path)
    tensors.refuse_others(*_TENSORS, "W_skip", _THRESHOLD)
    w_enc = tensors.matrix("W_enc").T
    d_in, d_sae = w_enc.shape
    w_dec = tensors.matrix("W_dec", d_sae)
    d_out, skip, jump = w_dec.shape[1], "W_skip" in tensors, _THRESHOLD in tensors
    told = _told(path)
    places = [
        told.get(f"feature_{side}_hook", usual)
        for side, usual in (("input", "mlp.hook_in"), ("output", "hook_mlp_out"))
    ]
    return assemble(
        path,
        f"{'jumprelu ' if jump else ''}{'skip ' if skip else ''}transcoder",
        w_enc=w_enc,
        b_enc=tensors.vector("b_enc", d_sae),
        w_dec=w_dec,
        b_dec=tensors.vector("b_dec", d_out),
        threshold=tensors.vector(_THRESHOLD, d_sae) if jump else 0.0,
        w_skip=tensors.matrix("W_skip", d_out, d_in) if skip else None,
        pre_bias=False,
        transcoder=True,
        model=told.get("model_name"),
        hook=f"blocks.{int(layer[1])}.{places[0]}",
        hook_out=f"blocks.{int(layer[1])}.{places[1]}",
    )


def _told(path: Path) -> dict[str, str]:
    """The plain texts of config.yaml, such as the model's name; none if there is no such file."""
    file = find(path, CFG)
    if file is None or file.stat().st_size > _LARGEST_CONFIG:
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    return dict(re.findall(r"""^(\w+):[ \t]*["']?([\w./-]+)["']?[ \t]*$""", text, re.MULTILINE))
