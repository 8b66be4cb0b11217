"""Random weights of Gemma Scope, and the SAEs that the loaders of SAELens make from its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

SIZES = {"d_in": 16, "d_sae": 64}


def arrays(d_out: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    shapes = {"W_enc": (16, 64), "W_dec": (64, d_out), "b_enc": (64,), "b_dec": (d_out,)}
    made = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "threshold": rng.uniform(0, 1, 64).astype(np.float32)}


def sae_lens_sae(monkeypatch: pytest.MonkeyPatch, root: Path, loader: str, repo: str, folder: str, **cfg: Any) -> Any:
    """The SAE that a loader of SAELens makes of the files in root/folder."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    def fetch(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        if not (root / subfolder / filename).exists():
            raise loaders.EntryNotFoundError(filename)
        return str(root / subfolder / filename)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {name: list(array.shape) for name, array in safetensors.numpy.load_file(root / filename).items()}

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    cfg_dict, state, _ = getattr(loaders, loader)(repo, folder, "cpu", False, cfg)
    cfg_dict = loaders.handle_config_defaulting(cfg_dict)
    cls, config = get_sae_class(cfg_dict["architecture"])
    sae = cls(config.from_dict(cfg_dict))
    sae.load_state_dict(state)
    return sae
