"""Kill a run at random moments, resume it every time, and compare its weights with an uninterrupted run's."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from sae_runtime.bundle.folder import WEIGHTS


@click.command()
@click.option("--kills", default=20, type=click.IntRange(min=1))
@click.option(
    "--longest", default=12.0, help="seconds a process may live before it is killed; starting takes about five"
)
@click.option("--seed", default=0)
def main(kills: int, longest: float, seed: int) -> None:
    """Print when each process was killed, and whether the weights agree."""
    chance, rng = random.Random(seed), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", rng.standard_normal((20_000, 128), np.float32))
        command = [sys.executable, "-c", "from sae_runtime.cli import main; main()", "train", "--activations", "x.npy"]
        command += ["--allocation", "feature", "--k", "8", "--d-sae", "512", "--tokens", "4000000", "--batch", "1000"]
        command += ["--pool", "1", "--quiet", "--run-state-seconds", "0.5"]  # nine pools to a pass
        done = 0
        for number in range(kills):
            process = subprocess.Popen([*command, "-o", "killed", "--resume"], cwd=folder, stdout=subprocess.DEVNULL)
            lived = chance.uniform(0, longest)
            try:
                process.wait(lived)
                break  # it came to its end
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                print(f"kill {number + 1:>2} after {lived:4.1f} s", flush=True)
        start = time.monotonic()
        if not (folder / "killed").exists():
            subprocess.run([*command, "-o", "killed", "--resume"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, "-o", "whole"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        equal = (folder / "killed" / WEIGHTS).read_bytes() == (folder / "whole" / WEIGHTS).read_bytes()
        print(
            f"{done} kills, then {time.monotonic() - start:.0f} s to the end: weights {'equal' if equal else 'DIFFER'}"
        )


if __name__ == "__main__":
    main()
