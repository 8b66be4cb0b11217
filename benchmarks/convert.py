"""Memory that `convert` takes: the peak of a fresh process, for checkpoints of a gigabyte.

Weights are random; each checkpoint has two matrices of half a gigabyte, in the files and orders of its library.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

# VmHWM, since ru_maxrss also counts what the parent held when it made the process.
_CHILD = """
import sys
from pathlib import Path
from sae_runtime.checkpoints.convert import convert
convert(*sys.argv[1:])
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024 // 10**6)
"""


def make(folder: Path, kind: str, d_in: int, d_sae: int) -> None:
    """Write a checkpoint of a kind: sae-lens, sparsify or dictionary-learning."""
    generator = torch.Generator().manual_seed(0)
    wide, tall = (torch.randn(shape, generator=generator) for shape in ((d_in, d_sae), (d_sae, d_in)))
    biases = torch.zeros(d_sae), torch.zeros(d_in)
    folder.mkdir()
    if kind == "sae-lens":
        weights = {"W_enc": wide, "W_dec": tall, "b_enc": biases[0], "b_dec": biases[1], "threshold": torch.ones(d_sae)}
        save_file(weights, folder / "sae_weights.safetensors")
        cfg = {"architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae, "dtype": "float32"}
        cfg["metadata"] = {"sae_lens_version": "6.54.12"}
        (folder / "cfg.json").write_text(json.dumps(cfg))
        return
    linear = {"encoder.weight": tall, "encoder.bias": biases[0], "b_dec": biases[1]}
    if kind == "sparsify":
        save_file({**linear, "W_dec": tall.clone()}, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(
            json.dumps({"activation": "topk", "k": 32, "num_latents": d_sae, "d_in": d_in})
        )
        return
    state = {**linear, "decoder.weight": wide, "k": torch.tensor(32), "threshold": torch.tensor(0.5)}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": 32}}))


@click.command()
@click.option("--d-in", default=2048, show_default=True)
@click.option("--d-sae", default=65_536, show_default=True)
def main(d_in: int, d_sae: int) -> None:
    """Print one line for each kind of checkpoint."""
    click.echo(f"d_in {d_in:,}, d_sae {d_sae:,}: {8 * d_in * d_sae / 1e6:,.0f} MB of weights")
    for kind in ("sae-lens", "sparsify", "dictionary-learning"):
        with tempfile.TemporaryDirectory() as home:
            make(Path(home) / "in", kind, d_in, d_sae)
            command = [sys.executable, "-c", _CHILD, f"{home}/in", f"{home}/out"]
            child = subprocess.run(command, capture_output=True, text=True, check=True)
        click.echo(f"{kind:<20} {int(child.stdout.split()[-1]):>6,} MB")


if __name__ == "__main__":
    main()
