"""Files as their authors released them, with random weights, and where the loaders of SAELens look for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

D_IN, D_SAE, D_OUT = 16, 64, 16


@dataclass(frozen=True)
class Release:
    """A released checkpoint.

    Attributes:
        repository: its name on the Hub.
        name: what SAELens calls the folder: the file, or the part of its name that differs between layers.
        loader: SAELens's function.
        settings: for SAELens, sizes that it takes from tables of real models.
        format: key of `convert.FORMATS`.
        source_format: what the reader calls it.
        model: the host model.
        hooks: where it reads, and where a transcoder writes.
    """

    repository: str
    name: str
    loader: str
    settings: dict[str, Any]
    format: str
    source_format: str
    model: str | None
    hooks: tuple[str | None, str | None]

    def save(self, root: Path) -> Path:
        """Write the files into a folder of the repository's name, and give the checkpoint's path."""
        home = root / self.repository.split("/")[1]
        home.mkdir()
        WRITERS[self.format](home, self.name)
        return home / self.name


def arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_OUT), "b_enc": (D_SAE,), "b_dec": (D_OUT,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def _torch(file: Path, names: dict[str, str], *, turned: bool = True) -> None:
    made = {
        names[name]: torch.from_numpy(np.ascontiguousarray(array.T if turned else array))
        for name, array in arrays().items()
    }
    torch.save(made, file)


def _same(prefix: str = "") -> dict[str, str]:
    return {name: prefix + name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def _linear(encoder: str, decoder: str) -> dict[str, str]:
    sides = {"enc": encoder, "dec": decoder}
    kinds = {"W": "weight", "b": "bias"}
    return {f"{k}_{s}": f"{module}.{kind}" for s, module in sides.items() for k, kind in kinds.items()}


def _hook_z(home: Path, name: str) -> None:
    _torch(home / name, _same(), turned=False)
    cfg = '{"act_size": 16, "dict_size": 64, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small"}'
    (home / name.replace(".pt", "_cfg.json")).write_text(cfg)


def _circuit_tracer(home: Path, name: str) -> None:
    made = arrays()
    safetensors.numpy.save_file({**made, "W_enc": np.ascontiguousarray(made["W_enc"].T)}, home / name)
    hooks = 'feature_input_hook: "mlp.hook_in"\nfeature_output_hook: hook_mlp_out\n'
    (home / "config.yaml").write_text(f"model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n{hooks}")
    values = {"d_model": D_IN, "d_feature": D_SAE, "batch_size": 1}
    text = "".join(f"{key}:\n    value: {value}\n" for key, value in values.items())
    (home / "wandb-config.yaml").write_text(text)


WRITERS = {
    "qwen-scope": lambda home, name: _torch(home / name, _same()),
    "goodfire": lambda home, name: _torch(home / name, _linear("encoder_linear", "decoder_linear")),
    "dictionary-learning": lambda home, name: _torch(home / name, _linear("encoder", "decoder")),
    "hook-z": _hook_z,
    "circuit-tracer": _circuit_tracer,
}
_SIZES = {"d_in": D_IN, "d_sae": D_SAE}
_KISSANE = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9"
RELEASES = {
    "Qwen Scope": Release(
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
        "layer7.sae.pt",
        "qwen_scope_sae_huggingface_loader",
        _SIZES,
        "qwen-scope",
        "topk",
        "Qwen/Qwen3-1.7B-Base",
        ("blocks.7.hook_resid_post", None),
    ),
    "Goodfire": Release(
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        "get_goodfire_huggingface_loader",
        _SIZES,
        "goodfire",
        "relu",
        "meta-llama/Llama-3.1-8B-Instruct",
        ("blocks.19.hook_resid_post", None),
    ),
    "DeepSeek R1": Release(
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
        "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
        "deepseek_r1_sae_huggingface_loader",
        {**_SIZES, "dtype": "float32"},
        "dictionary-learning",
        "AutoEncoderNew",
        None,
        (None, None),
    ),
    "hook_z": Release(
        "ckkissane/attn-saes-gpt2-small-all-layers",
        f"{_KISSANE}.pt",
        "connor_rob_hook_z_huggingface_loader",
        {"reshape_activations": "none"},
        "hook-z",
        "relu",
        "gpt2-small",
        ("blocks.5.attn.hook_z", None),
    ),
    "circuit-tracer": Release(
        "mwhanna/qwen3-4b-transcoders",
        "layer_11.safetensors",
        "mwhanna_transcoder_huggingface_loader",
        {},
        "circuit-tracer",
        "transcoder",
        "Qwen/Qwen3-4B",
        ("blocks.11.mlp.hook_in", "blocks.11.hook_mlp_out"),
    ),
}
