"""Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors and config.json): JumpReLU SAEs and transcoders.

The mathematics is that of their papers (arXiv:2408.05147): z = relu(h) where h > threshold, without a pre-bias.
"""

from pathlib import Path

import numpy as np

from sae_runtime.bundle.manifest import Architecture
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import config_of, find, home
from sae_runtime.checkpoints.npz_file import open_npz
from sae_runtime.checkpoints.safetensors_file import open_safetensors
from sae_runtime.checkpoints.stored import Stored, Tensors

NPZ, SAFE, CFG = "params.npz", "params.safetensors", "config.json"
ARCHITECTURES = ("jumprelu", "jumprelu transcoder", "jumprelu skip transcoder")
_SKIP = "affine_skip_connection"


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of Gemma Scope, 1 or 2."""
    file = _weights_file(path)
    return file is not None and (file.suffix == ".npz" or file.name == SAFE)


def read(path: Path) -> Checkpoint:
    """The SAE or transcoder in a folder or file of Gemma Scope.

    The files of Gemma Scope 1 do not say what they are: transcoders and SAEs of embeddings are recognised by the
    published names of their folders.

    Raises:
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    file = _weights_file(path)
    if file is None:
        raise ValueError(f"{path} holds no {NPZ} and no {SAFE}, which Gemma Scope comes as; name the file")
    if file.suffix == ".npz":
        return _first(file, open_npz(file))
    return _second(path, file, open_safetensors(file))


def _weights_file(path: Path) -> Path | None:
    if path.is_file():
        return find(path, path.name) if path.suffix == ".npz" or path.name == SAFE else None
    return find(path, NPZ) or find(path, SAFE)


def _first(file: Path, tensors: Tensors) -> Checkpoint:
    upper = {name if name[:2] != "w_" else f"W_{name[2:]}": name for name in tensors.names()}
    w_enc = tensors.matrix(upper.get("W_enc", "W_enc"))
    d_in, d_sae = w_enc.shape
    w_dec = tensors.matrix(upper.get("W_dec", "W_dec"), d_sae)
    d_out = w_dec.shape[1]
    if "scaling_factor" in tensors and not np.allclose(tensors.vector("scaling_factor", d_sae), 1):
        raise ValueError(f"{file}: scaling_factor is not 1, and no release says how it is to be applied")
    named = (upper.get("W_enc", "W_enc"), upper.get("W_dec", "W_dec"))
    tensors.refuse_others(*named, "b_enc", "b_dec", "threshold", "scaling_factor")
    folders = home(file).absolute().parts
    transcoder, warnings = d_out != d_in, []
    if any(folder.endswith("-transcoders") for folder in folders):
        transcoder = True
        warnings.append(
            "It is read as a transcoder, since it lies in a repository of transcoders; the file does not say."
        )
    if "embedding" in folders[-3:]:
        w_enc, w_dec = w_enc.scaled(d_in**-0.5), w_dec.scaled(d_in**0.5)
        warnings.append(
            "It was fitted on embeddings before the model multiplies them by sqrt(d_in); as in SAELens, whose b_dec "
            "stays as it is, the bundle takes them after."
        )
    return _checkpoint(file, tensors, w_enc, w_dec, transcoder=transcoder, warnings=tuple(warnings))


def _second(path: Path, file: Path, tensors: Tensors) -> Checkpoint:
    cfg = config_of(path, CFG)
    if cfg is None:
        raise ValueError(f"{file} needs its {CFG}, which says what it reads; put it beside the weights")
    if (form := cfg.text("architecture")) != "jump_relu":
        raise ValueError(f"{cfg.file}: architecture is {form}, expected jump_relu")
    for name in ("w_enc", "w_dec"):
        if name in tensors and tensors.rank(name) == 3:
            raise ValueError(
                f"{file}: {name} is of several layers; crosscoders and cross-layer transcoders cannot be served"
            )
    w_enc = tensors.matrix("w_enc")
    d_in, d_sae = w_enc.shape
    w_dec = tensors.matrix("w_dec", d_sae)
    tensors.refuse_others("w_enc", "w_dec", "b_enc", "b_dec", "threshold", _SKIP)
    w_skip = tensors.matrix(_SKIP, d_in, w_dec.shape[1]).T if _SKIP in tensors else None
    hook, hook_out = (_module(cfg.maybe_text(f"hf_hook_point_{side}")) for side in ("in", "out"))
    transcoder = w_skip is not None or w_dec.shape[1] != d_in or hook_out not in (None, hook)
    return _checkpoint(
        file,
        tensors,
        w_enc,
        w_dec,
        w_skip,
        transcoder=transcoder,
        model=cfg.maybe_text("model_name"),
        hook=hook,
        hook_out=hook_out if transcoder else None,
    )


def _module(point: str | None) -> str | None:
    """The module of `model.layers.5.output`; an input stays as it is, since no module gives it."""
    return None if point is None else point.removesuffix(".output")


def _checkpoint(
    file: Path,
    tensors: Tensors,
    w_enc: Stored,
    w_dec: Stored,
    w_skip: Stored | None = None,
    *,
    transcoder: bool,
    model: str | None = None,
    hook: str | None = None,
    hook_out: str | None = None,
    warnings: tuple[str, ...] = (),
) -> Checkpoint:
    (d_in, d_sae), d_out = w_enc.shape, w_dec.shape[1]
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="threshold",
            pre_bias=False,
            d_out=d_out if transcoder else None,
            skip=w_skip is not None,
        ),
        weights=gather(
            file,
            w_enc=w_enc,
            b_enc=tensors.vector("b_enc", d_sae),
            w_dec=w_dec,
            b_dec=tensors.vector("b_dec", d_out),
            threshold=tensors.vector("threshold", d_sae),
            w_skip=w_skip,
        ),
        file=file,
        source_format=f"jumprelu{' skip' if w_skip else ''}{' transcoder' if transcoder else ''}",
        model=model,
        hook=hook,
        hook_out=hook_out,
        warnings=warnings,
    )
