"""What must work on every system with `sae-runtime[export,text]`: a random bundle, exported, read and steered."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sae_runtime import Edit, load
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export


def main() -> None:
    """Fail with a traceback, or say that it worked."""
    rng = np.random.default_rng(0)
    d_in, d_sae = 16, 64
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        home = Path(name)
        (home / "lens").mkdir()
        w_enc = rng.normal(size=(d_in, d_sae)).astype(np.float32)
        weights: dict[str, NDArray[np.float32]] = {
            "W_enc": w_enc,
            "W_dec": np.ascontiguousarray(w_enc.T / 4),
            "b_enc": np.zeros(d_sae, np.float32),
        }
        save_file({**weights, "b_dec": np.zeros(d_in, np.float32)}, home / "lens" / "sae_weights.safetensors")
        cfg = {"architecture": "topk", "k": 4, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
        (home / "lens" / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
        convert(home / "lens", home / "sae")
        export(home / "sae")
        sae = load(home / "sae")
        x = rng.normal(size=(50, d_in)).astype(np.float32)
        features = sae.encode(x)
        assert (features.l0() == 4).all()
        number = int(features.row(0)[0][0])
        assert (sae.steer(x, []) == x).all() and (sae.steer(x, [Edit.ablate(number)])[0] != x[0]).any()
    sys.stdout.write("sae-runtime works here\n")


if __name__ == "__main__":
    main()
