"""A Python that finds a few packages and nothing else."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path


def link(bare: Path, *distributions: str) -> None:
    """Make installed distributions importable from a folder, and nothing else."""
    for name in distributions:
        for top in {Path(str(file)).parts[0] for file in distribution(name).files or () if ".." not in str(file)}:
            if not (bare / top).exists():
                (bare / top).symlink_to(str(distribution(name).locate_file(top)))


def in_bare(bare: Path, code: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run code where only the packages in a folder can be found: -S leaves out those of this environment."""
    command = [sys.executable, "-S", "-c", code]
    env = {"PYTHONPATH": str(bare), **env}
    return subprocess.run(command, cwd=bare.parent, env=env, capture_output=True, text=True)
