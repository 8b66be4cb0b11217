"""The tests of this folder again, each with many examples, which are the same in every run."""

import os
import subprocess
import sys
from pathlib import Path

from examples import CAMPAIGN


def test_many_examples_hold() -> None:
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    command += [str(here.parent), f"--ignore={here}"]
    environment = {**os.environ, CAMPAIGN: "150", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
