"""The README tells the truth: its blocks run, its tables and its tree are complete."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_x

from sae_runtime.cli import COMMANDS
from sae_runtime.exports import export

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, expected in zip(blocks("python"), blocks("text"), strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected


def test_commands_run(tmp_path: Path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (script,) = blocks("bash")
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"acts", "sae", "features.parquet", "steered.npy"} <= {path.name for path in tmp_path.iterdir()}


def test_every_command_is_in_the_table() -> None:
    assert set(COMMANDS) == set(re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE))


def test_bundle_table_names_every_file(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    named = set(re.findall(r"^\| `([\w.]+\.\w+)` \|", README, flags=re.MULTILINE))
    path = tmp_path / "sae"
    shutil.copytree(bundle_of("feature", 512), path)
    export(path, activations=make_x(10))
    assert named == {path.name for path in path.iterdir()}
