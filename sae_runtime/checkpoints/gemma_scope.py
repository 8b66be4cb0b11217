"""Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors and config.json): JumpReLU SAEs and transcoders.

The formula is that of the paper (arXiv:2408.05147): f = z where z > threshold, else 0, without a pre-bias.
"""

import re
from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.folder import Config, config_of, find, home
from sae_runtime.checkpoints.npz_file import open_npz
from sae_runtime.checkpoints.safetensors_file import open_safetensors

NPZ, SAFE, CFG = "params.npz", "params.safetensors", "config.json"
ARCHITECTURES = ("jumprelu", "jumprelu transcoder", "jumprelu skip transcoder")
_SKIP = "affine_skip_connection"
_FIRST = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SECOND = re.compile(r"gemma-scope-2-(\w+)-(pt|it)")
_LAYER = re.compile(r"layer_(\d+)")
# Where the SAEs of a repository of Gemma Scope 1 read, and its transcoders write.
_PLACES = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
# The same of a folder of Gemma Scope 2, as its config.json has them where there is one.
_NORM = "{}_feedforward_layernorm.output"
_SECOND_PLACES = {
    "transcoder": (_NORM.format("pre"), _NORM.format("post")),
    "resid_post": ("output", None),
    "attn_out": ("self_attn.o_proj.input", None),
    "mlp_out": (_NORM.format("post"), None),
}


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of Gemma Scope, 1 or 2."""
    return _weights_file(path) is not None


def read(path: Path) -> Checkpoint:
    """The SAE or transcoder in a folder or file of Gemma Scope.

    The files of Gemma Scope 1 do not tell transcoders and SAEs of embeddings from other SAEs. The published names of
    their folders do.

    Raises:
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    file = _weights_file(path)
    if file is None:
        raise ValueError(f"{path} holds no {NPZ} and no {SAFE}, which Gemma Scope comes as; name the file")
    first = file.suffix == ".npz"
    tensors = open_npz(file) if first else open_safetensors(file)
    cfg = _named(file) if first else _config(path, file)
    encoder, decoder = (tensors.first(f"w_{part}", f"W_{part}") for part in ("enc", "dec"))
    if 3 in (tensors.rank(encoder), tensors.rank(decoder)):
        raise ValueError(f"{file} is of several layers; crosscoders and cross-layer transcoders cannot be served")
    w_enc = tensors.matrix(encoder)
    d_in, d_sae = w_enc.shape
    w_dec = tensors.matrix(decoder, d_sae)
    d_out = w_dec.shape[1]
    tensors.refuse_scaling("scaling_factor", d_sae)
    tensors.refuse_others(encoder, decoder, "b_enc", "b_dec", "threshold", *(["scaling_factor"] if first else [_SKIP]))
    w_skip = tensors.matrix(_SKIP, d_in, d_out).T if _SKIP in tensors else None
    hook, hook_out = (_module(cfg.maybe_text(f"hf_hook_point_{side}")) for side in ("in", "out"))
    transcoder, warnings = w_skip is not None or d_out != d_in or hook_out not in (None, hook), []
    folders = home(file).absolute().parts if first else ()
    if any(folder.endswith("-transcoders") for folder in folders):
        transcoder = True
        warnings.append(
            "It is read as a transcoder, since its repository is one of transcoders; the file does not say. It reads "
            "what the norm before the MLP gives without that norm's weight."
        )
    if "embedding" in folders[-3:]:
        w_enc, w_dec = w_enc.scaled(d_in**-0.5), w_dec.scaled(d_in**0.5)
        warnings.append(
            "It was fitted on embeddings before the model multiplies them by sqrt(d_in), and the bundle takes them "
            "afterwards. As in SAELens, its b_dec stays as it is."
        )
    return assemble(
        file,
        f"jumprelu{' skip' if w_skip else ''}{' transcoder' if transcoder else ''}",
        w_enc=w_enc,
        b_enc=tensors.vector("b_enc", d_sae),
        w_dec=w_dec,
        b_dec=tensors.vector("b_dec", d_out),
        threshold=tensors.vector("threshold", d_sae),
        w_skip=w_skip,
        pre_bias=False,
        transcoder=transcoder,
        model=cfg.maybe_text("model_name"),
        hook=hook,
        hook_out=hook_out if transcoder else None,
        warnings=tuple(warnings),
    )


def _weights_file(path: Path) -> Path | None:
    if path.is_file():
        return find(path, path.name) if path.suffix == ".npz" or path.name == SAFE else None
    return find(path, NPZ) or find(path, SAFE)


def _config(path: Path, file: Path) -> Config:
    cfg = config_of(path, CFG) or _named(file)
    if not cfg.fields:
        raise ValueError(
            f"{file} needs its {CFG}, which says what it reads; put it beside the weights, or keep the names of the "
            "published folders"
        )
    cfg.choice("architecture", ("jump_relu",))
    return cfg


def _named(file: Path) -> Config:
    """What the names of the published folders tell, as a configuration of Gemma Scope 2; nothing for other names."""
    folders = file.absolute().parts[:-1]
    layer = next((found[1] for folder in reversed(folders) if (found := _LAYER.search(folder))), None)
    for place, folder in reversed(list(enumerate(folders))):
        first, second = _FIRST.search(folder), _SECOND.search(folder)
        inside = folders[place + 1 :]
        if first is not None:
            model = f"google/gemma-2-{first[1]}{'-it' * (first[2] == 'it')}"
            if any("embedding" in name for name in inside):
                return Config(file, {"model_name": model, "hf_hook_point_in": "hook_embed"})
            ends = [hook and layer and f"blocks.{layer}.{hook}" for hook in _PLACES[first[3]]]
        elif second is not None:
            model = f"google/gemma-3-{second[1]}-{second[2]}"
            kinds = [kind for kind in _SECOND_PLACES if any(kind in name for name in inside)]
            if not kinds or layer is None:
                break
            ends = [hook and f"model.layers.{layer}.{hook}" for hook in _SECOND_PLACES[kinds[0]]]
        else:
            continue
        told = {"model_name": model, "hf_hook_point_in": ends[0], "hf_hook_point_out": ends[1]}
        return Config(file, {**told, "architecture": "jump_relu"})
    return Config(file, {})


def _module(point: str | None) -> str | None:
    """The hook of `model.layers.5.output` or `model.layers.5.self_attn.o_proj.input`."""
    if point is not None and point.endswith(".input"):
        return f"input:{point.removesuffix('.input')}"
    return None if point is None else point.removesuffix(".output")
